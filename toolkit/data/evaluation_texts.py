"""Validation and test documents: chosen by hash, cut to length, kept apart from training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.config import SPLITS, DataSection, Role, SplitName
from toolkit.data.encode import TextTokenizer
from toolkit.data.sources import Document
from toolkit.data.texts import TextIndex, read_texts
from toolkit.errors import DataError
from toolkit.json_lines import split_lines
from toolkit.load_yaml import parse_json
from toolkit.stage import write_atomically

_MOST_BYTES_PER_TOKEN = 8
_CHUNK = 256
_TOGETHER = 64


@dataclass(frozen=True)
class EvaluationDocument:
    """A document of `validation.jsonl` or `test.jsonl`, and its number in the index."""

    number: int
    document: Document
    role: Role
    num_tokens: int


def choose_evaluation(
    section: DataSection,
    texts: Path,
    index: TextIndex,
    usable: NDArray[np.bool_],
    tokenizer: TextTokenizer,
) -> dict[SplitName, list[EvaluationDocument]]:
    """Documents of both evaluation splits, in the order of sources and hashes.

    Args:
        section: sources with their splits.
        texts: folder of the text shards.
        index: of all documents.
        usable: `[D]`, those that cleaning and duplicates left.
        tokenizer: counts tokens, and finds the place to cut at.
    """
    chosen: dict[SplitName, list[EvaluationDocument]] = {"validation": [], "test": []}
    for split in chosen:
        for number, (name, source) in enumerate(section.sources.items()):
            here = usable & (index.source == number) & (index.split == SPLITS.index(split))
            pool = np.flatnonzero(here)
            pool = pool[np.argsort(index.order[pool], kind="stable")]
            limit = source.split[split].max_tokens if split in source.split else None
            total = 0
            documents = _in_order(texts, index, pool, limit, section)
            cut_to = section.evaluation_document_tokens
            while limit is None or total < limit:
                some = list(islice(documents, _TOGETHER))
                if not some:
                    break
                counts = tokenizer.counts([document.text for _, document in some])
                for (place, document), count in zip(some, counts, strict=True):
                    if limit is not None and total >= limit:
                        break
                    own = replace(document, source=name)
                    item = _cut(place, own, source.role, tokenizer, count, cut_to)
                    chosen[split].append(item)
                    total += item.num_tokens
    return chosen


def _in_order(
    texts: Path, index: TextIndex, pool: NDArray[Any], limit: int | None, section: DataSection
) -> Iterator[tuple[int, Document]]:
    """Numbers and texts of a pool in its order, read from as few shards as a limit allows."""
    start = 0
    cut = section.evaluation_document_tokens
    while start < len(pool):
        stop = len(pool)
        if limit is not None:
            sizes = index.num_bytes[pool[start:]]
            if cut is not None:
                sizes = np.minimum(sizes, cut * _MOST_BYTES_PER_TOKEN)
            wanted = limit * _MOST_BYTES_PER_TOKEN
            stop = start + int(np.searchsorted(np.cumsum(sizes), wanted)) + 1
            stop = min(max(stop, start + 1), start + max(_CHUNK, stop - start), len(pool))
        part = pool[start:stop]
        found: dict[int, Document] = {}
        for shard in np.unique(index.shard[part]).tolist():
            members = part[index.shard[part] == shard]
            source = int(index.source[members[0]])
            documents = read_texts(texts, source, shard, index.row[members])
            found.update(zip(members.tolist(), documents, strict=True))
        for number in part.tolist():
            yield number, found.pop(number)
        start = stop


def _cut(
    number: int,
    document: Document,
    role: Role,
    tokenizer: TextTokenizer,
    num_tokens: int,
    cut_to: int | None,
) -> EvaluationDocument:
    if cut_to is not None and num_tokens > cut_to:
        _, offsets = tokenizer.encode(document.text)
        document = replace(document, text=document.text[: offsets[cut_to - 1][1]])
        num_tokens = tokenizer.counts([document.text])[0]
    return EvaluationDocument(number, document, role, num_tokens)


def write_documents(path: Path, items: list[EvaluationDocument]) -> None:
    """Write `validation.jsonl` or `test.jsonl`: id, role, group and text of each document, and the
    messages of a conversation."""
    with write_atomically(path) as file:
        for item in items:
            document = item.document
            row = {
                "id": document.id,
                "role": item.role,
                "group": document.group,
                "text": document.text,
            }
            if document.messages:
                row["messages"] = json.loads(document.messages)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_other_evaluations(files: tuple[str, ...]) -> list[str]:
    """Texts of evaluation files: every string of a json or jsonl file, or a whole text file.

    Raises:
        DataError: a file cannot be read.
    """
    texts: list[str] = []
    for name in files:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
            if name.endswith(".json"):
                texts += _strings(parse_json(text, name, DataError))
            elif name.endswith(".jsonl"):
                texts += _strings([parse_json(line, name, DataError) for line in split_lines(text)])
            else:
                texts.append(text)
        except DataError as error:
            raise DataError(f"data.cleaning.decontaminate_files: {error}") from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"data.cleaning.decontaminate_files: {name}: cannot be read ({error})."
            ) from error
    return texts


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []
