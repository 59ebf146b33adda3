"""The merged model's vocabulary, and every model's embedding rows brought into its order.

The ids are those of one model, the owner: the base (or first) model, or the one that
`tokenizer_source` names. `union` appends what the other models have, in file order and by their
ids. A model that lacks a token gets a row for it before the method runs, as under mergekit: that
of the one model that has it, else the base model's, else the mean of all that have it, else zeros;
or what `tokenizer.tokens` says. Rows without a token are dropped; `pad_to_multiple_of` adds rows
that are the mean of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.tokens import Tokens, read_tokens
from toolkit.errors import ConfigError, MergeError, sentence_end, warn
from toolkit.load_yaml import JsonView
from toolkit.merge.config import MergeConfig, MergeTokenizerSection, TokenEmbedding, TokenSource
from toolkit.merge.plan import MergePlan, plan_merge
from toolkit.merge.vocab.embeddings import Embeddings, remapped_config, remapped_model
from toolkit.merge.vocab.remapped import AVERAGE, PADDING, ZERO, RowMap
from toolkit.merge.vocab.tokenizer import tokenizer_owner, tokenizer_source
from toolkit.merge.vocab.united import NewToken, unite_tokenizers


@dataclass(frozen=True)
class Vocabulary:
    """What becomes of the vocabulary.

    Attributes:
        owner: the model whose ids stay as they are.
        num_tokens: ids of the merged model, from 0 on.
        num_rows: rows of its embeddings.
        old_rows: rows that each model has.
        new: tokens that the owner lacks.
        filled: tokens that each model lacks, or whose row it gives up.
        num_zero: tokens that no model has a row for.
        tokenizer: tokenizer.json; None where the owner's serves as it is.
        models: the models with their rows in order.
    """

    owner: str
    num_tokens: int
    num_rows: int
    old_rows: Mapping[str, int]
    new: tuple[NewToken, ...]
    filled: Mapping[str, int]
    num_zero: int
    tokenizer: JsonView | None
    models: Models

    @property
    def num_kept(self) -> int:
        """Ids from 0 on that are those of the owner's tokens."""
        return self.num_tokens - len(self.new)

    def describe(self) -> list[str]:
        """What happens, in lines of words and figures."""
        lines = [
            f"vocabulary of {self.owner}: {self.num_kept} tokens, "
            f"{len(self.new)} added, {self.num_rows} embedding rows"
        ]
        for donor in dict.fromkeys(token.donor for token in self.new):
            donor_texts = [token.text for token in self.new if token.donor == donor]
            shown_texts = ", ".join(map(repr, donor_texts[:5]))
            more_dots = ", ..." if len(donor_texts) > 5 else ""
            source_name = donor or "tokenizer.tokens"
            lines.append(f"  {len(donor_texts)} from {source_name}: {shown_texts}{more_dots}")
        lines += [
            f"  {name}: {self.old_rows[name]} rows, gets {count} from elsewhere"
            for name, count in self.filled.items()
        ]
        if self.num_zero:
            lines.append(f"  {self.num_zero} tokens that no model has begin as zeros")
        return lines


def plan_vocabulary(config: MergeConfig, models: Models) -> Vocabulary | None:
    """Decide on ids and rows; reads tokenizers and headers, no tensor.

    Returns:
        None where nothing is asked for, or all models have one vocabulary and as many rows: the
        embeddings are then merged as they stand, padding rows too.

    Raises:
        ConfigError: `tokens` asks for what nobody has.
        MergeError: the leading model has no tokenizer, or one is of a kind that cannot be united.
    """
    source = tokenizer_source(config)
    if source is None:
        return None
    section = config.tokenizer or MergeTokenizerSection(source=source)
    planner = _VocabularyPlanner(config, section, models)
    return None if planner.stays_as_it_is() else planner.plan()


def plan_with_vocabulary(
    config: MergeConfig, models: Models
) -> tuple[MergePlan, Models, Vocabulary | None]:
    """Plan a merge in the vocabulary that it asks for.

    Returns:
        The plan, the models that its tasks read (with their rows in order), and what becomes of the
        vocabulary; see `plan_vocabulary`.

    Raises:
        ConfigError, MergeError: as `plan_vocabulary` and `plan_merge`.
    """
    vocabulary = plan_vocabulary(config, models)
    seen = vocabulary.models if vocabulary is not None else models
    return plan_merge(config, seen.shapes, seen.config, seen.file), seen, vocabulary


def truncate_embeddings(config: MergeConfig, models: Models) -> tuple[Models, int]:
    """The models with no more embedding rows than the smallest of them has, and how many.

    For models whose rows mean the same tokens, and of which some are padded further: what mergekit
    does with `--unsafe-truncate-embeddings`.

    Raises:
        MergeError: a model has no tensor that is known to be the embedding of its tokens.
    """
    model_names = config.model_names()
    embeddings = [Embeddings(name, models.checkpoint(name)) for name in model_names]
    num_rows = min(item.num_rows for item in embeddings)
    checkpoints, configs = {}, {}
    for number, (name, own_embeddings) in enumerate(zip(model_names, embeddings, strict=True)):
        first_rows = np.arange(num_rows)
        donors = np.full(num_rows, number, np.int16)
        averages = np.empty((0, len(model_names)), np.int64)
        row_map = RowMap(donors, first_rows, averages, num_rows)
        if (remapped := remapped_model(number, [*embeddings], len(model_names), row_map)) is None:
            continue
        checkpoints[name] = remapped
        configs[name] = remapped_config(
            models.config(name),
            old_rows=own_embeddings.num_rows,
            num_rows=num_rows,
            num_kept=num_rows,
            is_untied=own_embeddings.lacks(remapped),
            owner=None,
        )
    return models.seen_as(checkpoints, configs), num_rows


def seen_as_merged(config: MergeConfig, models: Models) -> Models:
    """The models of a merge that was run: of different rows in one vocabulary, no plan would take
    them, so they were merged with their embeddings cut."""
    if tokenizer_source(config) is not None:
        return models
    try:
        rows = {Embeddings(name, models.checkpoint(name)).num_rows for name in config.model_names()}
    except MergeError:
        return models  # a model without embeddings that are known as such
    return truncate_embeddings(config, models)[0] if len(rows) > 1 else models


def refuse_cut_tokens(config: MergeConfig, models: Models, num_rows: int) -> None:
    """Refuse to cut rows off whose tokens the merged tokenizer has.

    Args:
        config: which says whose tokenizer it is.
        models: as they stand on disk.
        num_rows: rows that are left.

    Raises:
        MergeError: names a token.
    """
    if tokenizer_source(config) is not None:
        return  # tokens without rows are left out, and that is said
    leader = config.leader()
    folder = models.token_folder(leader)
    try:
        # Those beyond its own rows are its own fault, and not lost here.
        own_rows = Embeddings(leader, models.checkpoint(leader)).num_rows
        leader_tokens = read_tokens(folder).within(own_rows)
    except MergeError:
        return  # there is none to be copied
    if cut_tokens := leader_tokens.within(num_rows).beyond:
        raise MergeError(
            f"{folder}: its tokenizer has {len(cut_tokens)} tokens beyond the {num_rows} rows that "
            f"--truncate-embeddings leaves (such as {cut_tokens[0]!r}); set tokenizer_source: base "
            "to leave them out of the merged tokenizer, or union to keep them with their rows, and "
            "leave --truncate-embeddings out."
        )


class _VocabularyPlanner:
    def __init__(self, config: MergeConfig, section: MergeTokenizerSection, models: Models) -> None:
        self.config, self.section, self.models = config, section, models
        self.wanted = section.tokens or {}
        self.owner = tokenizer_owner(config)
        self.names = config.model_names()
        token_donors = (_model_of(entry) for entry in self.wanted.values())
        self.donors = list(dict.fromkeys([*self.names, *filter(None, token_donors)]))
        self.embeddings = {name: Embeddings(name, models.checkpoint(name)) for name in self.donors}
        self.tokens: dict[str, Tokens] = {}
        # The leader is read first: a model without a tokenizer is given its tokens. Then the owner
        # stands first, whose ids go before all others'.
        for name in dict.fromkeys([config.leader(), self.owner, *self.donors]):
            self.tokens[name] = self._read_tokens(name)
        order = dict.fromkeys([self.owner, *self.donors])
        self.tokens = {name: self.tokens[name] for name in order}

    def _read_tokens(self, name: str) -> Tokens:
        """A model's tokens; where it has no tokenizer, those of the leading model, as in mergekit.

        Tokens beyond its rows are left out, and that is said.
        """
        leader = self.config.leader()
        try:
            model_tokens = read_tokens(self.models.token_folder(name))
        except MergeError:
            if name in (leader, self.owner) or leader not in self.tokens:
                raise
            warn(f"{name}: has no tokenizer; its tokens are taken to be those of {leader}.")
            model_tokens = self.tokens[leader]
        if name not in self.embeddings:
            return model_tokens
        num_rows = self.embeddings[name].num_rows
        within_rows = model_tokens.within(num_rows)
        if within_rows.beyond:
            warn(
                f"{model_tokens.folder}: its tokenizer has {len(within_rows.beyond)} tokens beyond "
                f"the {num_rows} rows of {self.embeddings[name].names[0]} (such as "
                f"{within_rows.beyond[0]!r}), which are left out."
            )
        return within_rows

    def stays_as_it_is(self) -> bool:
        """Whether all models have one vocabulary and as many rows, and no others are wanted."""
        owner_ids = self.tokens[self.owner].ids
        row_counts = {self.embeddings[name].num_rows for name in self.names}
        multiple = self.section.pad_to_multiple_of or 1
        return (
            not self.wanted
            and not self.tokens[self.owner].beyond
            and all(self.tokens[name].ids == owner_ids for name in self.names)
            and len(row_counts) == 1
            and all(count % multiple == 0 for count in row_counts)
        )

    def plan(self) -> Vocabulary:
        for name in self.tokens:
            self._check(name)
        new_tokens = self._new_tokens()
        owner_tokens = self.tokens[self.owner]
        ids = {**owner_tokens.ids, **{token.text: token.id for token in new_tokens}}
        num_tokens = max(ids.values(), default=-1) + 1
        row_multiple = self.section.pad_to_multiple_of or 1
        num_rows = -(-num_tokens // row_multiple) * row_multiple
        row_maps, num_zero = self._maps(ids, num_tokens, num_rows)
        united = unite_tokenizers(
            self.owner, self.tokens, ids, new_tokens, carries_flags=self.section.source == "union"
        )
        return Vocabulary(
            owner=self.owner,
            num_tokens=num_tokens,
            num_rows=num_rows,
            old_rows={name: self.embeddings[name].num_rows for name in self.names},
            new=tuple(new_tokens),
            filled={
                model_name: int((row_maps[model_name].donor[:num_tokens] != number).sum())
                for number, model_name in enumerate(self.names)
            },
            num_zero=num_zero,
            tokenizer=united,
            models=self._seen(row_maps, num_rows, num_tokens - len(new_tokens)),
        )

    def _check(self, name: str) -> None:
        model_tokens = self.tokens[name]
        if not model_tokens.are_listed:
            raise MergeError(
                f"{model_tokens.folder}: has only tokenizer.model (sentencepiece), and its tokens "
                "cannot be set beside another model's; load the tokenizer with transformers and "
                "save it again, which writes tokenizer.json."
            )

    def _new_tokens(self) -> list[NewToken]:
        """What the owner lacks: of all models for a union, and what is named one by one."""
        ids = dict(self.tokens[self.owner].ids)
        new_tokens: list[NewToken] = []

        def add(text: str, donor: str | None, *, is_learned: bool) -> None:
            token_id = (
                max(ids.values(), default=-1) + 1 if not new_tokens else new_tokens[-1].id + 1
            )
            ids[text] = token_id
            new_tokens.append(NewToken(text, token_id, donor, is_learned))

        for model_name in self.names if self.section.source == "union" else ():
            other_tokens = self.tokens[model_name]
            for text in sorted(other_tokens.ids, key=lambda text: int(other_tokens.ids[text])):
                if text not in ids:
                    add(text, model_name, is_learned=text not in other_tokens.added)
        for text, wanted_entry in self.wanted.items():
            if text in ids:
                continue
            named = [wanted_entry.source] if isinstance(wanted_entry.source, str) else []
            donor = next((n for n in [*named, *self.names] if text in self.tokens[n].ids), None)
            if donor is None and not isinstance(wanted_entry.source, TokenSource):
                raise ConfigError(
                    f"tokenizer.tokens: no model has the token {text!r}"
                    f"{sentence_end(text, ids)} To make a new one, give it a source "
                    "({kind: zero}, or {kind: model_token, model: ..., token: ...})."
                )
            add(text, donor, is_learned=False)
        return new_tokens

    def _maps(
        self, ids: Mapping[str, int], num_tokens: int, num_rows: int
    ) -> tuple[dict[str, RowMap], int]:
        """Row maps by model, and how many tokens nobody has."""
        rows_by_donor = np.full((len(self.donors), num_tokens), -1, np.int64)
        token_ids = np.fromiter(ids.values(), np.int64, len(ids))
        for number, model_name in enumerate(self.donors):
            donor_ids = self.tokens[model_name].ids
            rows_by_donor[number, token_ids] = np.fromiter(
                (donor_ids.get(text, -1) for text in ids), np.int64, len(ids)
            )
        if self.owner in self.donors:  # its rows between tokens stay what they are
            unnamed_ids = np.setdiff1d(np.arange(num_tokens), token_ids)
            rows_by_donor[self.donors.index(self.owner), unnamed_ids] = unnamed_ids
        default_donors, row, averages = self._defaults(rows_by_donor)
        is_forced = np.zeros(num_tokens, bool)
        for text, entry in self.wanted.items():
            is_forced[ids[text]] = entry.force
            if entry.source is not None:
                default_donors[ids[text]], row[ids[text]] = self._named_source(text, entry.source)
        row_maps = {}
        for number, model_name in enumerate(self.names):
            own_rows = rows_by_donor[number]
            keeps_own = (own_rows >= 0) & ~is_forced
            num_padding = num_rows - num_tokens
            merged_donors = np.where(keeps_own, number, default_donors).astype(np.int16)
            merged_rows = np.where(keeps_own, own_rows, row)
            row_maps[model_name] = RowMap(
                np.pad(merged_donors, (0, num_padding), constant_values=PADDING),
                np.pad(merged_rows, (0, num_padding)),
                averages,
                num_tokens,
            )
        return row_maps, int((default_donors == ZERO).sum())

    def _defaults(
        self, has: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where a token's row comes from, for models that lack it: donors, rows, averages."""
        num_models = len(self.names)  # those named in `tokens` alone give nothing unasked
        has_token = has[:num_models] >= 0
        num_having = has_token.sum(axis=0)
        # In this order, later lines going before earlier ones: the one model that has it, the base
        # where several have, and where all have it the base or the first.
        default_donors = np.where(num_having == 1, has_token.argmax(axis=0), AVERAGE)
        default_donors[num_having == 0] = ZERO
        if self.config.base_model is not None:
            base_number = self.names.index(self.config.base_model)
            default_donors[(num_having > 1) & has_token[base_number]] = base_number
        default_donors[num_having == num_models] = 0  # no model lacks it; only a forced token asks
        if self.config.base_model is not None:
            default_donors[num_having == num_models] = self.names.index(self.config.base_model)
        # ZERO and AVERAGE are below zero and no donors: row 0 stands in for them until it is
        # replaced.
        default_rows = np.take_along_axis(has, np.maximum(default_donors, 0)[None], axis=0)[0]
        default_rows[default_donors == ZERO] = 0
        is_averaged = default_donors == AVERAGE
        default_rows[is_averaged] = np.arange(int(is_averaged.sum()))
        averaged_rows = has[:, is_averaged].T.copy()
        # Donors that `tokens` alone names are not merged, and have no part in a mean.
        averaged_rows[:, num_models:] = -1
        return default_donors, default_rows, averaged_rows

    def _named_source(self, text: str, source: TokenSource | str) -> tuple[int, int]:
        if isinstance(source, str):
            source = TokenSource(kind="model_token", model=source, token=text)
        if source.kind == "zero":
            return ZERO, 0
        model = str(source.model)
        if source.token is not None:
            model_ids = self.tokens[model].ids
            if source.token not in model_ids:
                raise ConfigError(
                    f"tokenizer.tokens.{text}: {model} has no token {source.token!r}"
                    f"{sentence_end(source.token, model_ids)}"
                )
            return self.donors.index(model), int(model_ids[source.token])
        token_id, rows = source.token_id, self.embeddings[model].num_rows
        if token_id is None or not 0 <= token_id < rows:
            raise ConfigError(
                f"tokenizer.tokens.{text}: token_id must be from 0 to {rows - 1}, the rows of "
                f"{model} (got {token_id})."
            )
        return self.donors.index(model), token_id

    def _seen(self, maps: Mapping[str, RowMap], num_rows: int, num_kept: int) -> Models:
        donor_embeddings = [self.embeddings[name] for name in self.donors]
        checkpoints, configs = {}, {}
        for number, model_name in enumerate(self.names):
            remapped = remapped_model(number, donor_embeddings, len(self.names), maps[model_name])
            if remapped is not None:
                checkpoints[model_name] = remapped
        for model_name in self.names:
            configs[model_name] = remapped_config(
                self.models.config(model_name),
                old_rows=self.embeddings[model_name].num_rows,
                num_rows=num_rows,
                num_kept=num_kept,
                is_untied=model_name in checkpoints
                and self.embeddings[model_name].lacks(checkpoints[model_name]),
                owner=self._owner_config(model_name),
            )
        return self.models.seen_as(checkpoints, configs)

    def _owner_config(self, name: str) -> JsonView | None:
        """The config whose special tokens count in place of a model's own."""
        if name == self.owner or self.owner not in self.names:
            return None
        return self.models.config(self.owner)


def _model_of(entry: TokenEmbedding) -> str | None:
    source = entry.source
    return source.model if isinstance(source, TokenSource) else source
