"""The data stage: recipe section in, `runs/<recipe>/data/` out.

Writes `train/{input_ids,labels,segments}.npy` (memory-mappable), `tuning.jsonl` and `test.jsonl`
(documents with their text), and `documents.csv` (every document, its split and its size).
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.clean import clean_documents
from toolkit.data.config import DataSection, Role, SplitName
from toolkit.data.packing import pack_best_fit
from toolkit.data.sources import Document, read_documents
from toolkit.data.split import assign_split, stable_unit
from toolkit.errors import DataError
from toolkit.manifest import Stage

Say = Callable[[str], None]


@dataclass(frozen=True)
class Encoded:
    """A document with its tokens, without separators."""

    document: Document
    role: Role
    tokens: list[int]


@dataclass
class _Corpus:
    train: dict[Role, list[Encoded]] = field(default_factory=lambda: {"domain": [], "general": []})
    tuning: list[Encoded] = field(default_factory=list)
    test: list[Encoded] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)


def run_data(section: DataSection, stage: Stage, tokenizer_folder: Path, say: Say) -> None:
    """Read, clean, split, tokenise and pack every source of the recipe.

    Raises:
        DataError: a split that is needed has no documents, or replay text runs out.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    separator = _separator(section, tokenizer)
    corpus = _read_corpus(section, stage.seed, tokenizer, say)
    corpus.train["general"] = _replay(section, corpus)
    _check(section, corpus)
    with stage.running() as work:
        documents = [
            [separator, *item.tokens, separator]
            for item in _shuffled(corpus.train["domain"] + corpus.train["general"], stage.seed)
        ]
        packed = pack_best_fit(documents, section.sequence_tokens, separator)
        # Best fit sorts by length; training wants lengths, and domain and replay, mixed.
        order = np.argsort([stable_unit("block", stage.seed, i) for i in range(len(packed.labels))])
        (work / "train").mkdir(exist_ok=True)
        for name in ("input_ids", "labels", "segments"):
            np.save(work / "train" / f"{name}.npy", getattr(packed, name)[order])
        _write_documents(work / "tuning.jsonl", corpus.tuning)
        _write_documents(work / "test.jsonl", corpus.test)
        _write_table(work / "documents.csv", corpus)
        results = _summary(section, corpus, len(order))
        results["separator_token_id"] = separator
        stage.finish(results)
    say(describe(results))


def _separator(section: DataSection, tokenizer: Any) -> int:
    if section.end_of_document is None:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "data.end_of_document: the tokenizer has no end-of-sequence token; name the token "
                "that should stand between documents."
            )
        return int(tokenizer.eos_token_id)
    token = tokenizer.get_vocab().get(section.end_of_document)
    if token is None:
        raise DataError(
            f"data.end_of_document: the tokenizer has no token {section.end_of_document!r}; "
            f"its end-of-sequence token is {tokenizer.eos_token!r}."
        )
    return int(token)


def _read_corpus(section: DataSection, seed: int, tokenizer: Any, say: Say) -> _Corpus:
    corpus = _Corpus()
    for name, source in section.sources.items():
        counts = corpus.counts.setdefault(name, Counter())
        pools: dict[SplitName, list[Document]] = {"train": [], "tuning": [], "test": []}
        documents = clean_documents(
            read_documents(name, source), min_words=section.min_document_words, counts=counts
        )
        for document in documents:
            split = assign_split(document, source, seed)
            if split is None:
                counts["in no split"] += 1
            else:
                pools[split].append(document)
        say(f"  {name}: {counts['kept']:,} documents of {counts['read']:,}")
        for split, pool in pools.items():
            limit = source.split[split].max_tokens if split in source.split else None
            if split == "train" and source.role == "general" and limit is None:
                limit = _replay_need(section, corpus)
            cut_to = None if split == "train" else section.evaluation_document_tokens
            chosen = _encode(_by_hash(pool, seed), source.role, tokenizer, limit, cut_to)
            if split == "train":
                corpus.train[source.role] += chosen
            else:
                (corpus.tuning if split == "tuning" else corpus.test).extend(chosen)
    return corpus


def _by_hash(pool: Iterable[Document], seed: int) -> list[Document]:
    return sorted(pool, key=lambda document: stable_unit("order", seed, document.id))


def _encode(
    documents: Iterable[Document],
    role: Role,
    tokenizer: Any,
    limit: int | None,
    cut_to: int | None,
) -> list[Encoded]:
    """Tokenise until `limit` tokens are there; with `cut_to`, each document is first cut short."""
    encoded: list[Encoded] = []
    total = 0
    for document in documents:
        if limit is not None and total >= limit:
            break
        result = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = list(result["input_ids"])
        if cut_to is not None and len(tokens) > cut_to:
            end = result["offset_mapping"][cut_to - 1][1]
            text = document.text[:end]
            document = Document(document.id, document.source, document.group, text)
            tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        encoded.append(Encoded(document, role, tokens))
        total += len(tokens)
    return encoded


def _replay_need(section: DataSection, corpus: _Corpus) -> int | None:
    """Tokens of general text that the share asks for, once all domain sources are read."""
    domain_sources = {n for n, s in section.sources.items() if s.role == "domain"}
    if not domain_sources <= set(corpus.counts):
        return None
    domain = sum(len(item.tokens) for item in corpus.train["domain"])
    return int(domain * section.replay_fraction / (1.0 - section.replay_fraction))


def _replay(section: DataSection, corpus: _Corpus) -> list[Encoded]:
    """General training documents up to the share of replay.

    Raises:
        DataError: there is less general text than the share needs.
    """
    need = _replay_need(section, corpus) or 0
    chosen: list[Encoded] = []
    total = 0
    for item in corpus.train["general"]:
        if total >= need:
            break
        tokens = item.tokens[: max(need - total, 1)]
        chosen.append(Encoded(item.document, item.role, tokens))
        total += len(tokens)
    if total < need:
        raise DataError(
            f"data.replay_fraction: {section.replay_fraction} of the training tokens needs "
            f"{need:,} tokens of general text, but the sources hold {total:,}; "
            "add a general source or lower the share."
        )
    return chosen


def _check(section: DataSection, corpus: _Corpus) -> None:
    sizes: Mapping[str, int] = {
        "training documents of the domain": len(corpus.train["domain"]),
        **{
            f"{split} documents of role {role}": sum(item.role == role for item in items)
            for split, items in (("tuning", corpus.tuning), ("test", corpus.test))
            for role in ("domain", "general")
        },
    }
    missing = [name for name, count in sizes.items() if count == 0]
    if missing:
        counts = "; ".join(f"{n}: {dict(c)}" for n, c in corpus.counts.items())
        raise DataError(
            f"data: there are no {', no '.join(missing)}. Documents by source: {counts}. "
            f"Check the sources' files, their `split` and min_document_words "
            f"({section.min_document_words})."
        )


def _shuffled(items: list[Encoded], seed: int) -> list[Encoded]:
    return sorted(items, key=lambda item: stable_unit("shuffle", seed, item.document.id))


def _write_documents(path: Path, items: list[Encoded]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            document = item.document
            row = {
                "id": document.id,
                "role": item.role,
                "group": document.group,
                "text": document.text,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_table(path: Path, corpus: _Corpus) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "role", "group", "split", "tokens", "bytes"])
        train = corpus.train["domain"] + corpus.train["general"]
        for split, items in (("train", train), ("tuning", corpus.tuning), ("test", corpus.test)):
            for item in items:
                size = len(item.document.text.encode())
                row = [item.document.id, item.role, item.document.group, split]
                writer.writerow([*row, len(item.tokens), size])


def _summary(section: DataSection, corpus: _Corpus, num_blocks: int) -> dict[str, Any]:
    tokens = {role: sum(len(i.tokens) for i in items) for role, items in corpus.train.items()}
    return {
        "train": {
            "num_blocks": num_blocks,
            "sequence_tokens": section.sequence_tokens,
            "domain_tokens": tokens["domain"],
            "general_tokens": tokens["general"],
            "replay_share": tokens["general"] / max(1, sum(tokens.values())),
        },
        **{
            split: {
                f"{role}_{unit}": sum(
                    len(item.tokens) if unit == "tokens" else 1
                    for item in items
                    if item.role == role
                )
                for role in ("domain", "general")
                for unit in ("documents", "tokens")
            }
            for split, items in (("tuning", corpus.tuning), ("test", corpus.test))
        },
        "sources": {name: dict(counts) for name, counts in corpus.counts.items()},
    }


def describe(results: Mapping[str, Any]) -> str:
    """One paragraph on what the stage made, for the terminal."""
    train, tuning, test = results["train"], results["tuning"], results["test"]
    return (
        f"  train: {train['num_blocks']:,} blocks of {train['sequence_tokens']}: "
        f"{train['domain_tokens']:,} domain + {train['general_tokens']:,} general tokens "
        f"({train['replay_share']:.1%} replay)\n"
        f"  tuning: {tuning['domain_documents']} domain + {tuning['general_documents']} general "
        f"documents; test: {test['domain_documents']} + {test['general_documents']}"
    )
