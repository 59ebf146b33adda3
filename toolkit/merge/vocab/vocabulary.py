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

    def describe(self) -> list[str]:
        """What happens, in lines of words and figures."""
        lines = [
            f"vocabulary of {self.owner}: {self.num_tokens - len(self.new)} tokens, "
            f"{len(self.new)} added, {self.num_rows} embedding rows"
        ]
        for donor in dict.fromkeys(token.donor for token in self.new):
            texts = [token.text for token in self.new if token.donor == donor]
            shown = ", ".join(map(repr, texts[:5])) + (", ..." if len(texts) > 5 else "")
            lines.append(f"  {len(texts)} from {donor or 'tokenizer.tokens'}: {shown}")
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


def truncate_embeddings(config: MergeConfig, models: Models) -> Models:
    """The models with no more embedding rows than the smallest of them has.

    For models whose rows mean the same tokens, and of which some are padded further: what mergekit
    does with `--unsafe-truncate-embeddings`.

    Raises:
        MergeError: a model has no tensor that is known to be the embedding of its tokens.
    """
    names = config.model_names()
    embeddings = [Embeddings(name, models.checkpoint(name)) for name in names]
    num_rows = min(item.num_rows for item in embeddings)
    checkpoints, configs = {}, {}
    for number, (name, own) in enumerate(zip(names, embeddings, strict=True)):
        rows = np.arange(num_rows)
        donors = np.full(num_rows, number, np.int16)
        averages = np.empty((0, len(names)), np.int64)
        whole = RowMap(donors, rows, averages, num_rows)
        if (seen := remapped_model(number, [*embeddings], len(names), whole)) is None:
            continue
        checkpoints[name] = seen
        configs[name] = remapped_config(
            models.config(name),
            old_rows=own.num_rows,
            num_rows=num_rows,
            is_untied=own.lacks(seen),
            owner=None,
        )
    return models.seen_as(checkpoints, configs)


class _VocabularyPlanner:
    def __init__(self, config: MergeConfig, section: MergeTokenizerSection, models: Models) -> None:
        self.config, self.section, self.models = config, section, models
        self.wanted = section.tokens or {}
        self.owner = tokenizer_owner(config)
        self.names = config.model_names()
        named = (_model_of(entry) for entry in self.wanted.values())
        self.donors = list(dict.fromkeys([*self.names, *filter(None, named)]))
        self.embeddings = {name: Embeddings(name, models.checkpoint(name)) for name in self.donors}
        self.tokens: dict[str, Tokens] = {}
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
            found = read_tokens(self.models.token_folder(name))
        except MergeError:
            if name in (leader, self.owner) or leader not in self.tokens:
                raise
            warn(f"{name}: has no tokenizer; its tokens are taken to be those of {leader}.")
            found = self.tokens[leader]
        if name not in self.embeddings:
            return found
        rows = self.embeddings[name].num_rows
        within = found.within(rows)
        if within.beyond:
            warn(
                f"{found.folder}: its tokenizer has {len(within.beyond)} tokens beyond the {rows} "
                f"rows of {self.embeddings[name].names[0]} (such as {within.beyond[0]!r}), which "
                "are left out."
            )
        return within

    def stays_as_it_is(self) -> bool:
        """Whether all models have one vocabulary and as many rows, and no others are wanted."""
        own = self.tokens[self.owner].ids
        rows = {self.embeddings[name].num_rows for name in self.names}
        multiple = self.section.pad_to_multiple_of or 1
        return (
            not self.wanted
            and not self.tokens[self.owner].beyond
            and all(self.tokens[name].ids == own for name in self.names)
            and len(rows) == 1
            and all(count % multiple == 0 for count in rows)
        )

    def plan(self) -> Vocabulary:
        for name in self.tokens:
            self._check(name)
        new = self._new_tokens()
        own = self.tokens[self.owner]
        ids = {**own.ids, **{token.text: token.id for token in new}}
        num_tokens = max(ids.values(), default=-1) + 1
        multiple = self.section.pad_to_multiple_of or 1
        num_rows = -(-num_tokens // multiple) * multiple
        maps, num_zero = self._maps(ids, num_tokens, num_rows)
        united = unite_tokenizers(
            self.owner, self.tokens, ids, new, carries_flags=self.section.source == "union"
        )
        return Vocabulary(
            owner=self.owner,
            num_tokens=num_tokens,
            num_rows=num_rows,
            old_rows={name: self.embeddings[name].num_rows for name in self.names},
            new=tuple(new),
            filled={
                name: int((maps[name].donor[:num_tokens] != number).sum())
                for number, name in enumerate(self.names)
            },
            num_zero=num_zero,
            tokenizer=united,
            models=self._seen(maps, num_rows),
        )

    def _check(self, name: str) -> None:
        tokens = self.tokens[name]
        if not tokens.are_listed:
            raise MergeError(
                f"{tokens.folder}: has only tokenizer.model (sentencepiece), and its tokens cannot "
                "be set beside another model's; load the tokenizer with transformers and save it "
                "again, which writes tokenizer.json."
            )

    def _new_tokens(self) -> list[NewToken]:
        """What the owner lacks: of all models for a union, and what is named one by one."""
        ids = dict(self.tokens[self.owner].ids)
        new: list[NewToken] = []

        def add(text: str, donor: str | None, *, is_learned: bool) -> None:
            number = max(ids.values(), default=-1) + 1 if not new else new[-1].id + 1
            ids[text] = number
            new.append(NewToken(text, number, donor, is_learned))

        for name in self.names if self.section.source == "union" else ():
            other = self.tokens[name]
            for text in sorted(other.ids, key=lambda text: int(other.ids[text])):
                if text not in ids:
                    add(text, name, is_learned=text not in other.added)
        for text, entry in self.wanted.items():
            if text in ids:
                continue
            named = [entry.source] if isinstance(entry.source, str) else []
            donor = next((n for n in [*named, *self.names] if text in self.tokens[n].ids), None)
            if donor is None and not isinstance(entry.source, TokenSource):
                raise ConfigError(
                    f"tokenizer.tokens: no model has the token {text!r}"
                    f"{sentence_end(text, ids)} To make a new one, give it a source "
                    "({kind: zero}, or {kind: model_token, model: ..., token: ...})."
                )
            add(text, donor, is_learned=False)
        return new

    def _maps(
        self, ids: Mapping[str, int], num_tokens: int, num_rows: int
    ) -> tuple[dict[str, RowMap], int]:
        """Row maps by model, and how many tokens nobody has."""
        has = np.full((len(self.donors), num_tokens), -1, np.int64)
        places = np.fromiter(ids.values(), np.int64, len(ids))
        for number, name in enumerate(self.donors):
            own = self.tokens[name].ids
            has[number, places] = np.fromiter(
                (own.get(text, -1) for text in ids), np.int64, len(ids)
            )
        if self.owner in self.donors:  # its rows between tokens stay what they are
            gaps = np.setdiff1d(np.arange(num_tokens), places)
            has[self.donors.index(self.owner), gaps] = gaps
        donor, row, averages = self._defaults(has)
        forced = np.zeros(num_tokens, bool)
        for text, entry in self.wanted.items():
            forced[ids[text]] = entry.force
            if entry.source is not None:
                donor[ids[text]], row[ids[text]] = self._named_source(text, entry.source)
        maps = {}
        for number, name in enumerate(self.names):
            own_row = has[number]
            keeps = (own_row >= 0) & ~forced
            padding = num_rows - num_tokens
            maps[name] = RowMap(
                np.pad(np.where(keeps, number, donor), (0, padding), constant_values=PADDING)
                .astype(np.int16),
                np.pad(np.where(keeps, own_row, row), (0, padding)),
                averages,
                num_tokens,
            )  # fmt: skip
        return maps, int((donor == ZERO).sum())

    def _defaults(
        self, has: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where a token's row comes from, for models that lack it: donors, rows, averages."""
        count = len(self.names)  # those named in `tokens` alone give nothing unasked
        known = has[:count] >= 0
        number = known.sum(axis=0)
        donor = np.where(number == 1, known.argmax(axis=0), AVERAGE)
        donor[number == 0] = ZERO
        if self.config.base_model is not None:
            base = self.names.index(self.config.base_model)
            donor[(number > 1) & known[base]] = base
        donor[number == count] = 0  # no model lacks it; only a forced token asks
        if self.config.base_model is not None:
            donor[number == count] = self.names.index(self.config.base_model)
        row = np.take_along_axis(has, np.maximum(donor, 0)[None], axis=0)[0]
        row[donor == ZERO] = 0
        several = donor == AVERAGE
        row[several] = np.arange(int(several.sum()))
        averages = has[:, several].T.copy()
        averages[:, count:] = -1
        return donor, row, averages

    def _named_source(self, text: str, source: TokenSource | str) -> tuple[int, int]:
        if isinstance(source, str):
            source = TokenSource(kind="model_token", model=source, token=text)
        if source.kind == "zero":
            return ZERO, 0
        model = str(source.model)
        if source.token is not None:
            own = self.tokens[model].ids
            if source.token not in own:
                raise ConfigError(
                    f"tokenizer.tokens.{text}: {model} has no token {source.token!r}"
                    f"{sentence_end(source.token, own)}"
                )
            return self.donors.index(model), int(own[source.token])
        number, rows = source.token_id, self.embeddings[model].num_rows
        if number is None or not 0 <= number < rows:
            raise ConfigError(
                f"tokenizer.tokens.{text}: token_id must be from 0 to {rows - 1}, the rows of "
                f"{model} (got {number})."
            )
        return self.donors.index(model), number

    def _seen(self, maps: Mapping[str, RowMap], num_rows: int) -> Models:
        donors = [self.embeddings[name] for name in self.donors]
        checkpoints, configs = {}, {}
        for number, name in enumerate(self.names):
            seen = remapped_model(number, donors, len(self.names), maps[name])
            if seen is not None:
                checkpoints[name] = seen
        for name in self.names:
            configs[name] = remapped_config(
                self.models.config(name),
                old_rows=self.embeddings[name].num_rows,
                num_rows=num_rows,
                is_untied=name in checkpoints and self.embeddings[name].lacks(checkpoints[name]),
                owner=self._owner_config(name),
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
