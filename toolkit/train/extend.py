"""The stage that adds tokens: general model in, `runs/<recipe>/general-extended/` out."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.folder import save_model, stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.data.clean import clean_documents
from toolkit.data.config import DataSection, SourceSection
from toolkit.data.sources import Document, read_documents
from toolkit.data.split import assign_split, stable_unit
from toolkit.errors import ConfigError, DataError
from toolkit.progress import say
from toolkit.stage import Stage, load_json, write_atomically, write_json
from toolkit.tokenizer_files import load_tokenizer
from toolkit.train.config import TokenizerSection
from toolkit.train.vocabulary import NewTokens, choose_merges, expansions

_STALE = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
"""Other forms of a vocabulary, which would contradict the extended `tokenizer.json`."""

# Documents cleaned at one time, tokens that the report names, texts read for the check.
_TOGETHER = 64
_SHOWN = 30
_CHECKED = 200


@dataclass(frozen=True)
class TextFigures:
    """What new tokens save in a set of texts."""

    bytes: int
    tokens_before: int
    tokens_after: int
    saved_fraction: float
    bytes_per_token_before: float
    bytes_per_token_after: float


@dataclass(frozen=True)
class ExtendSummary:
    """Figures of the stage, as its manifest has them.

    Attributes:
        new_tokens: number of new tokens that come out of text.
        texts: figures by set of texts, such as `train, domain`.
        most_useful: tokens that save the most in the training text, and how many each saves.
        special: names of new special tokens.
    """

    new_tokens: int
    texts: dict[str, TextFigures]
    most_useful: list[tuple[str, int]]
    special: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        values = asdict(self)
        if not self.special:
            del values["special"]
        return values


def run_extend(section: TokenizerSection, data: DataSection, stage: Stage, general: Path) -> None:
    """Choose new tokens on the training split, and write the general model with them.

    Raises:
        ConfigError: the tokenizer is of a kind that cannot be extended, or nothing is worth adding.
        DataError: the domain sources have no training text.
    """
    tokenizer_table = _read_tokenizer(general, with_merges=section.new_tokens is not None)
    old_core = _core(tokenizer_table)
    texts_by_set: dict[str, list[str]] = {}
    new_tokens = NewTokens([], [])
    if section.new_tokens is not None:
        texts_by_set = _texts_of(data, section, stage.seed)
        new_tokens = _choose(old_core, section, section.new_tokens, texts_by_set["train, domain"])
    special_pieces = _special_pieces(old_core, section.special_tokens, general)
    extended_table, first_id = extend_tokenizer(
        with_special(tokenizer_table, section.special_tokens), new_tokens
    )
    # In float32, whatever is stored: means of rows are rounded once, when the model is saved.
    row_pieces = [*special_pieces, *_row_ids(old_core.get_vocab(), new_tokens)]
    with stage.running() as work:
        model = load_causal_model(general, torch.float32)
        add_rows(model, first_id - len(special_pieces), row_pieces, general)
        save_model(model, work, dtype=stored_dtype(general), like=general)
        for name in _STALE:
            (work / name).unlink(missing_ok=True)
        write_json(work / "tokenizer.json", extended_table)
        if section.chat_template is not None:
            write_template(work, section.chat_template)
        _check(
            old_core, work, new_tokens, [text for found in texts_by_set.values() for text in found]
        )
        _check_special(work, section.special_tokens, first_id - len(special_pieces))
        new_core = _core(extended_table)
        summary = _summarize(old_core, new_core, texts_by_set, new_tokens, section.special_tokens)
        _write_report(work / "report.md", summary)
        stage.finish(summary.to_json())
    say(_sentence(summary))


def _texts_of(data: DataSection, section: TokenizerSection, seed: int) -> dict[str, list[str]]:
    texts_by_set: dict[str, list[str]] = {
        "train, domain": [],
        "validation, domain": [],
        "validation, general": [],
    }
    character_limits = {
        "train": section.sample_characters,
        "validation": max(1, section.sample_characters // 10),
    }
    for name, source in data.sources.items():
        for split, found_texts in _texts(name, source, data, character_limits, seed).items():
            if f"{split}, {source.role}" in texts_by_set:
                texts_by_set[f"{split}, {source.role}"] += found_texts
    return texts_by_set


def _choose(core: Any, section: TokenizerSection, most: int, texts: list[str]) -> NewTokens:
    word_counts: Counter[str] = Counter()
    for text in texts:
        word_counts.update(_words(core, text))
    if not word_counts:
        raise DataError("tokenizer: the domain sources have no training text to find tokens in.")
    counts_by_pieces = {
        tuple(token.value for token in core.model.tokenize(word)): count
        # Sorted, so that ties are broken alike in every process and on every machine.
        for word, count in sorted(word_counts.items())
    }
    chosen = choose_merges(counts_by_pieces, set(core.get_vocab()), most, section.min_count)
    if not chosen.merges:
        raise ConfigError(
            f"tokenizer.min_count: no new token would save {section.min_count} tokens in "
            f"{sum(map(len, texts)):,} characters; lower it, give more text, or drop the section."
        )
    return chosen


def _special_pieces(core: Any, names: Sequence[str], general: Path) -> list[list[int]]:
    """Old ids of the pieces of each name.

    Raises:
        ConfigError: the tokenizer has a name already, or leaves nothing of it.
    """
    pieces = []
    for name in names:
        if name in core.get_vocab():
            raise ConfigError(
                f"tokenizer.special_tokens: the tokenizer of {general} has {name!r} already; use "
                "it without adding it."
            )
        pieces.append(core.encode(name, add_special_tokens=False).ids)
        # Its row begins as the mean of its pieces' rows; of none that is no number.
        if not pieces[-1]:
            raise ConfigError(
                f"tokenizer.special_tokens: the tokenizer of {general} reads nothing in {name!r}, "
                "so its row has no rows to begin from; give a name with letters in it."
            )
    return pieces


def write_template(folder: Path, template: str) -> None:
    """Give a tokenizer a chat template, in place of any that it has.

    Raises:
        ConfigError: it is no template.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError as error:
        raise ConfigError(f"tokenizer.chat_template: is no template ({error}).") from error
    config_file = folder / "tokenizer_config.json"
    if config_file.is_file():
        config_values = load_json(config_file)
        if config_values.pop("chat_template", None) is not None:  # one place for it, not two
            write_json(config_file, config_values)
    with write_atomically(folder / "chat_template.jinja") as file:
        file.write(template)


def with_special(table: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The contents of a `tokenizer.json` with special tokens added behind all others."""
    taken_ids = [*table["model"]["vocab"].values(), *(t["id"] for t in table["added_tokens"])]
    token_flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    new_entries = [
        {"id": max(taken_ids) + 1 + number, "content": name, **token_flags, "special": True}
        for number, name in enumerate(names)
    ]
    return {**table, "added_tokens": [*table["added_tokens"], *new_entries]}


def _check_special(folder: Path, names: Sequence[str], first: int) -> None:
    new_tokenizer = load_tokenizer(folder)
    for number, name in enumerate(names):
        if new_tokenizer.convert_tokens_to_ids(name) != first + number:
            raise ConfigError(
                f"tokenizer.special_tokens: transformers does not read {name!r} as it was written; "
                "tokenizers of this kind cannot be extended."
            )


def extend_tokenizer(table: dict[str, Any], chosen: NewTokens) -> tuple[dict[str, Any], int]:
    """The contents of a `tokenizer.json` with merges added, and the id of the first new token.

    New ids follow the largest old one. Special tokens are listed in the vocabulary too: those that
    are not would be numbered anew behind it.
    """
    model = table["model"]
    special_ids = {token["content"]: token["id"] for token in table["added_tokens"]}
    vocabulary = {**model["vocab"], **special_ids}
    first_id = max(vocabulary.values()) + 1
    for number, token in enumerate(chosen.tokens):
        vocabulary[token] = first_id + number
    # Older files write a merge as one text, newer ones as a pair; one file may not mix them.
    merges_as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    added_merges = [" ".join(pair) if merges_as_text else list(pair) for pair in chosen.merges]
    return {
        **table,
        "model": {**model, "vocab": vocabulary, "merges": [*model["merges"], *added_merges]},
    }, first_id


@torch.no_grad()
def add_rows(model: Any, first: int, pieces: list[list[int]], general: Path) -> None:
    """Give a model rows for new tokens: the mean of the rows that each stands for.

    Args:
        model: a causal language model with float32 parameters.
        first: id of the first new token.
        pieces: old ids of each new token.
        general: where the model comes from, for the message.

    Raises:
        DataError: the model has fewer rows than the tokenizer has tokens.
    """
    num_rows = model.get_input_embeddings().weight.shape[0]
    if num_rows < first:
        raise DataError(
            f"{general}: the tokenizer has {first} tokens, but the model's vocabulary {num_rows}; "
            "its tokenizer and weights do not belong together."
        )
    if num_rows < first + len(pieces):
        # Without transformers' own first values for new rows: it would draw them from the
        # covariance of all old ones, and they are replaced below.
        model.resize_token_embeddings(first + len(pieces), mean_resizing=False)
    # By identity: a head that is tied is the embedding, and its rows must not be averaged twice.
    output_head = model.get_output_embeddings()
    tensors = {id(t): t for t in (model.get_input_embeddings().weight, output_head.weight)}
    if getattr(output_head, "bias", None) is not None:
        tensors[id(output_head.bias)] = output_head.bias
    for tensor in tensors.values():
        for number, ids in enumerate(pieces):
            tensor[first + number] = tensor[ids].float().mean(dim=0)


def _row_ids(vocabulary: dict[str, int], chosen: NewTokens) -> list[list[int]]:
    pieces_by_token = expansions(chosen.merges)
    return [[vocabulary[piece] for piece in pieces_by_token[token]] for token in chosen.tokens]


def _read_tokenizer(general: Path, *, with_merges: bool) -> dict[str, Any]:
    path = general / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"tokenizer: {general} has no tokenizer.json, so none can be extended.")
    table: dict[str, Any] = load_json(path)
    model = table.get("model", {})
    # With either, a piece is spelled by where in a word it stands, and the text of two pieces
    # joined is not that of both; without a pre-tokenizer a merge could span words.
    word_affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    cuts_words = not any(word_affixes) and table.get("pre_tokenizer") is not None
    if model.get("type") != "BPE" or (with_merges and not cuts_words):
        raise ConfigError(
            f"tokenizer: {general} has a tokenizer of type {model.get('type')}"
            f"{' without a pre-tokenizer' if table.get('pre_tokenizer') is None else ''}; only "
            "byte-pair encodings that cut text into words first can be extended."
        )
    return table


def _core(table: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(json.dumps(table))
    core.no_truncation()
    core.no_padding()
    # The name of a special token that stands in a text is cut into pieces like any other text.
    core.encode_special_tokens = True
    return core


def _texts(
    name: str, source: SourceSection, data: DataSection, limits: dict[str, int], seed: int
) -> dict[str, list[str]]:
    """Cleaned texts of a source's splits, up to so many characters of each.

    Those with the lowest hashes, which the data stage takes first too: they come from all over the
    source, where its first documents may be of one kind.
    """
    heaps_by_split: dict[str, list[tuple[float, int, Document]]] = {split: [] for split in limits}
    characters_by_split = dict.fromkeys(limits, 0)
    for number, document in enumerate(read_documents(name, source)):
        split = assign_split(document, source, seed)
        if split is None or split not in heaps_by_split:
            continue
        lowest_hashes = heaps_by_split[split]
        # The number settles equal hashes: documents cannot be compared.
        heapq.heappush(lowest_hashes, (-stable_unit("order", seed, document.id), number, document))
        characters_by_split[split] += len(document.text)
        # A heap with the highest hash on top: what no longer fits is thrown away at once.
        while characters_by_split[split] - len(lowest_hashes[0][2].text) >= limits[split]:
            characters_by_split[split] -= len(heapq.heappop(lowest_hashes)[2].text)
    texts_by_split: dict[str, list[str]] = {}
    for name_of_split, lowest_hashes in heaps_by_split.items():
        documents = [
            document for _, _, document in sorted(lowest_hashes, key=lambda item: -item[0])
        ]
        texts_by_split[name_of_split] = []
        for start in range(0, len(documents), _TOGETHER):
            document_batch = documents[start : start + _TOGETHER]
            cleaned_documents, _, _ = clean_documents(document_batch, data.cleaning, Counter())
            texts_by_split[name_of_split] += [document.text for document in cleaned_documents]
    return texts_by_split


def _words(core: Any, text: str) -> list[str]:
    normal_text = core.normalizer.normalize_str(text) if core.normalizer is not None else text
    return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(normal_text)]


def _check(old: Any, folder: Path, chosen: NewTokens, texts: list[str]) -> None:
    """The extended tokenizer, as transformers reads it, must read text as the old one does."""
    new = load_tokenizer(folder)
    vocabulary = old.get_vocab()
    pieces_by_id = {
        new.convert_tokens_to_ids(token): [vocabulary[piece] for piece in pieces]
        for token, pieces in expansions(chosen.merges).items()
    }
    # So many from all over the sets, and not all: each is cut into tokens twice.
    for text in texts[:: max(1, len(texts) // _CHECKED)]:
        new_ids = new(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        # New tokens put back into their pieces must give the old reading, piece by piece.
        old_ids = [piece for token in new_ids for piece in pieces_by_id.get(token, [token])]
        if old_ids != old.encode(text, add_special_tokens=False).ids:
            raise ConfigError(
                f"tokenizer: transformers reads the extended tokenizer otherwise than it was "
                f"written, as in {text[:40]!r}; tokenizers of this kind cannot be extended."
            )


def _summarize(
    old: Any, new: Any, texts: dict[str, list[str]], chosen: NewTokens, special: Sequence[str]
) -> ExtendSummary:
    figures_by_set: dict[str, TextFigures] = {}
    for name, set_texts in texts.items():
        tokens_before, tokens_after = (
            sum(len(row.ids) for row in core.encode_batch_fast(set_texts, add_special_tokens=False))
            for core in (old, new)
        )
        num_bytes = sum(len(text.encode()) for text in set_texts)
        figures_by_set[name] = TextFigures(
            bytes=num_bytes,
            tokens_before=tokens_before,
            tokens_after=tokens_after,
            saved_fraction=round(1.0 - tokens_after / max(1, tokens_before), 4),
            bytes_per_token_before=round(num_bytes / max(1, tokens_before), 3),
            bytes_per_token_after=round(num_bytes / max(1, tokens_after), 3),
        )
    saved_tokens = zip(chosen.tokens, chosen.saved, strict=True)
    most_useful = sorted(saved_tokens, key=lambda item: (-item[1], item[0]))[:_SHOWN]
    return ExtendSummary(len(chosen.merges), figures_by_set, most_useful, list(special))


def _sentence(summary: ExtendSummary) -> str:
    if not summary.texts:
        return f"  new special tokens: {', '.join(summary.special) or 'none'}"
    train, validation = (summary.texts[f"{split}, domain"] for split in ("train", "validation"))
    return (
        f"  {summary.new_tokens} new tokens: {train.saved_fraction:.1%} fewer tokens in the "
        f"training text, {validation.saved_fraction:.1%} in the validation text "
        f"({validation.bytes_per_token_before} -> {validation.bytes_per_token_after} bytes a token)"
    )


def _write_report(path: Path, summary: ExtendSummary) -> None:
    special_names = ", ".join(f"`{name}`" for name in summary.special)
    lines = [
        f"# {summary.new_tokens + len(summary.special)} new tokens",
        "",
        *([f"Special: {special_names}", ""] if special_names else []),
        "Chosen on the training text; the validation text had no say.",
        "",
        "| text | bytes | tokens before | after | saved | bytes a token before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in summary.texts.items():
        lines.append(
            f"| {name} | {figures.bytes:,} | {figures.tokens_before:,} | "
            f"{figures.tokens_after:,} | {figures.saved_fraction:.1%} | "
            f"{figures.bytes_per_token_before} | {figures.bytes_per_token_after} |"
        )
    lines += ["", "The most useful, with the tokens that each saves in the training text:", ""]
    lines += [f"- `{token}` {saved:,}" for token, saved in summary.most_useful]
    with write_atomically(path) as file:
        file.write("\n".join(lines) + "\n")
