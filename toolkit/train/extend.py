"""The stage that adds tokens: general model in, `runs/<recipe>/general-extended/` out."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
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

_TOGETHER = 64
_SHOWN = 30
_CHECKED = 200


def run_extend(section: TokenizerSection, data: DataSection, stage: Stage, general: Path) -> None:
    """Choose new tokens on the training split, and write the general model with them.

    Raises:
        ConfigError: the tokenizer is of a kind that cannot be extended, or nothing is worth adding.
        DataError: the domain sources have no training text.
    """
    table = _read_tokenizer(general, with_merges=section.new_tokens is not None)
    core = _core(table)
    texts: dict[str, list[str]] = {}
    chosen = NewTokens([], [])
    if section.new_tokens is not None:
        texts = _texts_of(data, section, stage.seed)
        chosen = _choose(core, section, section.new_tokens, texts["train, domain"])
    special = _special_pieces(core, section.special_tokens, general)
    extended, first = extend_tokenizer(with_special(table, section.special_tokens), chosen)
    pieces = [*special, *_row_ids(core.get_vocab(), chosen)]
    with stage.running() as work:
        model = load_causal_model(general, torch.float32)
        add_rows(model, first - len(special), pieces, general)
        save_model(model, work, dtype=stored_dtype(general), like=general)
        for name in _STALE:
            (work / name).unlink(missing_ok=True)
        write_json(work / "tokenizer.json", extended)
        if section.chat_template is not None:
            write_template(work, section.chat_template)
        _check(core, work, chosen, [text for found in texts.values() for text in found])
        _check_special(work, section.special_tokens, first - len(special))
        results = _results(core, _core(extended), texts, chosen)
        if section.special_tokens:
            results["special"] = list(section.special_tokens)
        _write_report(work / "report.md", results)
        stage.finish(results)
    say(_sentence(results))


def _texts_of(data: DataSection, section: TokenizerSection, seed: int) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {
        "train, domain": [],
        "validation, domain": [],
        "validation, general": [],
    }
    limits = {"train": section.sample_characters, "validation": section.sample_characters // 10}
    for name, source in data.sources.items():
        for split, found in _texts(name, source, data, limits, seed).items():
            if f"{split}, {source.role}" in texts:
                texts[f"{split}, {source.role}"] += found
    return texts


def _choose(core: Any, section: TokenizerSection, most: int, texts: list[str]) -> NewTokens:
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_words(core, text))
    if not words:
        raise DataError("tokenizer: the domain sources have no training text to find tokens in.")
    pieces = {
        tuple(token.value for token in core.model.tokenize(word)): count
        for word, count in sorted(words.items())
    }
    chosen = choose_merges(pieces, set(core.get_vocab()), most, section.min_count)
    if not chosen.merges:
        raise ConfigError(
            f"tokenizer.min_count: no new token would save {section.min_count} tokens in "
            f"{sum(map(len, texts)):,} characters; lower it, give more text, or drop the section."
        )
    return chosen


def _special_pieces(core: Any, names: Sequence[str], general: Path) -> list[list[int]]:
    """Old ids of the pieces of each name."""
    for name in names:
        if name in core.get_vocab():
            raise ConfigError(
                f"tokenizer.special_tokens: the tokenizer of {general} has {name!r} already; use "
                "it without adding it."
            )
    return [core.encode(name, add_special_tokens=False).ids for name in names]


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
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        values = load_json(settings)
        if values.pop("chat_template", None) is not None:  # one place for it, not two
            write_json(settings, values)
    with write_atomically(folder / "chat_template.jinja") as file:
        file.write(template)


def with_special(table: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The contents of a `tokenizer.json` with special tokens added behind all others."""
    taken = [*table["model"]["vocab"].values(), *(t["id"] for t in table["added_tokens"])]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    new = [
        {"id": max(taken) + 1 + number, "content": name, **flags, "special": True}
        for number, name in enumerate(names)
    ]
    return {**table, "added_tokens": [*table["added_tokens"], *new]}


def _check_special(folder: Path, names: Sequence[str], first: int) -> None:
    new = load_tokenizer(folder)
    for number, name in enumerate(names):
        if new.convert_tokens_to_ids(name) != first + number:
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
    special = {token["content"]: token["id"] for token in table["added_tokens"]}
    vocabulary = {**model["vocab"], **special}
    first = max(vocabulary.values()) + 1
    for number, token in enumerate(chosen.tokens):
        vocabulary[token] = first + number
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    added = [" ".join(pair) if as_text else list(pair) for pair in chosen.merges]
    return {
        **table,
        "model": {**model, "vocab": vocabulary, "merges": [*model["merges"], *added]},
    }, first


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
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < first:
        raise DataError(
            f"{general}: the tokenizer has {first} tokens, but the model's vocabulary {rows}; "
            "its tokenizer and weights do not belong together."
        )
    if rows < first + len(pieces):
        model.resize_token_embeddings(first + len(pieces), mean_resizing=False)
    output = model.get_output_embeddings()
    tensors = {id(t): t for t in (model.get_input_embeddings().weight, output.weight)}
    if getattr(output, "bias", None) is not None:
        tensors[id(output.bias)] = output.bias
    for tensor in tensors.values():
        for number, ids in enumerate(pieces):
            tensor[first + number] = tensor[ids].float().mean(dim=0)


def _row_ids(vocabulary: dict[str, int], chosen: NewTokens) -> list[list[int]]:
    made = expansions(chosen.merges)
    return [[vocabulary[piece] for piece in made[token]] for token in chosen.tokens]


def _read_tokenizer(general: Path, *, with_merges: bool) -> dict[str, Any]:
    path = general / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"tokenizer: {general} has no tokenizer.json, so none can be extended.")
    table: dict[str, Any] = load_json(path)
    model = table.get("model", {})
    affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    cuts = not any(affixes) and table.get("pre_tokenizer") is not None
    if model.get("type") != "BPE" or (with_merges and not cuts):
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
    core.encode_special_tokens = True
    return core


def _texts(
    name: str, source: SourceSection, data: DataSection, limits: dict[str, int], seed: int
) -> dict[str, list[str]]:
    """Cleaned texts of a source's splits, up to so many characters of each.

    Those with the lowest hashes, which the data stage takes first too: they come from all over the
    source, where its first documents may be of one kind.
    """
    heaps: dict[str, list[tuple[float, int, Document]]] = {split: [] for split in limits}
    sizes = dict.fromkeys(limits, 0)
    for number, document in enumerate(read_documents(name, source)):
        split = assign_split(document, source, seed)
        if split is None or split not in heaps:
            continue
        heap = heaps[split]
        heapq.heappush(heap, (-stable_unit("order", seed, document.id), number, document))
        sizes[split] += len(document.text)
        while sizes[split] - len(heap[0][2].text) >= limits[split]:
            sizes[split] -= len(heapq.heappop(heap)[2].text)
    found: dict[str, list[str]] = {}
    for name_of_split, heap in heaps.items():
        documents = [document for _, _, document in sorted(heap, key=lambda item: -item[0])]
        found[name_of_split] = []
        for start in range(0, len(documents), _TOGETHER):
            part = documents[start : start + _TOGETHER]
            kept, _, _ = clean_documents(part, data.cleaning, Counter())
            found[name_of_split] += [document.text for document in kept]
    return found


def _words(core: Any, text: str) -> list[str]:
    normal = core.normalizer.normalize_str(text) if core.normalizer is not None else text
    return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(normal)]


def _check(old: Any, folder: Path, chosen: NewTokens, texts: list[str]) -> None:
    """The extended tokenizer, as transformers reads it, must read text as the old one does."""
    new = load_tokenizer(folder)
    vocabulary = old.get_vocab()
    made = {
        new.convert_tokens_to_ids(token): [vocabulary[piece] for piece in pieces]
        for token, pieces in expansions(chosen.merges).items()
    }
    for text in texts[:: max(1, len(texts) // _CHECKED)]:
        ids = new(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        opened = [piece for token in ids for piece in made.get(token, [token])]
        if opened != old.encode(text, add_special_tokens=False).ids:
            raise ConfigError(
                f"tokenizer: transformers reads the extended tokenizer otherwise than it was "
                f"written, as in {text[:40]!r}; tokenizers of this kind cannot be extended."
            )


def _results(old: Any, new: Any, texts: dict[str, list[str]], chosen: NewTokens) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, found in texts.items():
        counts = [
            sum(len(item.ids) for item in core.encode_batch_fast(found, add_special_tokens=False))
            for core in (old, new)
        ]
        size = sum(len(text.encode()) for text in found)
        figures[name] = {
            "bytes": size,
            "tokens_before": counts[0],
            "tokens_after": counts[1],
            "saved_fraction": round(1.0 - counts[1] / max(1, counts[0]), 4),
            "bytes_per_token_before": round(size / max(1, counts[0]), 3),
            "bytes_per_token_after": round(size / max(1, counts[1]), 3),
        }
    best = sorted(
        zip(chosen.saved, chosen.tokens, strict=True), key=lambda item: (-item[0], item[1])
    )
    return {
        "new_tokens": len(chosen.merges),
        "texts": figures,
        "most_useful": [[token, saved] for saved, token in best[:_SHOWN]],
    }


def _sentence(results: dict[str, Any]) -> str:
    if not results["texts"]:
        return f"  new special tokens: {', '.join(results.get('special', [])) or 'none'}"
    train, validation = (results["texts"][f"{split}, domain"] for split in ("train", "validation"))
    return (
        f"  {results['new_tokens']} new tokens: {train['saved_fraction']:.1%} fewer tokens in the "
        f"training text, {validation['saved_fraction']:.1%} in the validation text "
        f"({validation['bytes_per_token_before']} -> {validation['bytes_per_token_after']} bytes a "
        "token)"
    )


def _write_report(path: Path, results: dict[str, Any]) -> None:
    special = results.get("special", [])
    lines = [
        f"# {results['new_tokens'] + len(special)} new tokens",
        "",
        *([f"Special: {', '.join(f'`{name}`' for name in special)}", ""] if special else []),
        "Chosen on the training text; the validation text had no say.",
        "",
        "| text | bytes | tokens before | after | saved | bytes a token before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results["texts"].items():
        lines.append(
            f"| {name} | {row['bytes']:,} | {row['tokens_before']:,} | {row['tokens_after']:,} | "
            f"{row['saved_fraction']:.1%} | {row['bytes_per_token_before']} | "
            f"{row['bytes_per_token_after']} |"
        )
    lines += ["", "The most useful, with the tokens that each saves in the training text:", ""]
    lines += [f"- `{token}` {saved:,}" for token, saved in results["most_useful"]]
    with write_atomically(path) as file:
        file.write("\n".join(lines) + "\n")
