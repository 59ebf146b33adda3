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
"""More than text has on average, so that a limit of tokens is seldom missed at first."""

_COUNTED_DOCUMENTS = 64
"""Documents whose tokens are counted at one time."""


@dataclass(frozen=True)
class EvaluationDocument:
    """A document of `validation.jsonl` or `test.jsonl`, and its number in the index."""

    number: int
    document: Document
    role: Role
    num_tokens: int


EvaluationSets = dict[SplitName, list[EvaluationDocument]]
"""Documents of the validation and the test split."""


def choose_evaluation(
    section: DataSection,
    texts: Path,
    index: TextIndex,
    usable: NDArray[np.bool_],
    tokenizer: TextTokenizer,
) -> EvaluationSets:
    """Documents of both evaluation splits, in the order of sources and hashes.

    Args:
        section: sources with their splits.
        texts: folder of the text shards.
        index: all documents.
        usable: `[D]`, those that cleaning and duplicates left.
        tokenizer: counts tokens, and finds the place to cut at.
    """
    chosen: EvaluationSets = {"validation": [], "test": []}
    for split, items in chosen.items():
        for number, (name, source) in enumerate(section.sources.items()):
            is_open = usable & (index.source == number) & (index.split == SPLITS.index(split))
            split_numbers = np.flatnonzero(is_open)
            split_numbers = split_numbers[np.argsort(index.order[split_numbers], kind="stable")]
            limit = source.split[split].max_tokens if split in source.split else None
            documents = (
                (place, replace(document, source=name))
                for place, document in _read_in_order(texts, index, split_numbers, limit, section)
            )
            items += _take_up_to(documents, limit, source.role, tokenizer, section)
    return chosen


def _take_up_to(
    documents: Iterator[tuple[int, Document]],
    limit: int | None,
    role: Role,
    tokenizer: TextTokenizer,
    section: DataSection,
) -> list[EvaluationDocument]:
    """Documents cut to length, up to the one that crosses a limit of tokens."""
    items: list[EvaluationDocument] = []
    total_tokens = 0
    while limit is None or total_tokens < limit:
        next_documents = list(islice(documents, _COUNTED_DOCUMENTS))
        if not next_documents:
            break
        token_counts = tokenizer.counts([document.text for _, document in next_documents])
        for (place, document), num_tokens in zip(next_documents, token_counts, strict=True):
            if limit is not None and total_tokens >= limit:
                break
            most_tokens = section.evaluation_document_tokens
            items.append(_cut(place, document, role, tokenizer, num_tokens, most_tokens))
            total_tokens += items[-1].num_tokens
    return items


def _read_in_order(
    texts: Path, index: TextIndex, pool: NDArray[Any], limit: int | None, section: DataSection
) -> Iterator[tuple[int, Document]]:
    """Numbers and texts of a pool in its order, read from as few shards as a limit allows."""
    pool_start = 0
    most_tokens = section.evaluation_document_tokens
    while pool_start < len(pool):
        pool_stop = len(pool)
        if limit is not None:
            # So many documents as should hold the limit; what is missing then is read later.
            num_bytes = index.num_bytes[pool[pool_start:]]
            if most_tokens is not None:
                num_bytes = np.minimum(num_bytes, most_tokens * _MOST_BYTES_PER_TOKEN)
            enough_bytes = limit * _MOST_BYTES_PER_TOKEN
            num_documents = int(np.searchsorted(np.cumsum(num_bytes), enough_bytes)) + 1
            pool_stop = min(pool_start + num_documents, len(pool))
        pool_part = pool[pool_start:pool_stop]
        documents_by_number: dict[int, Document] = {}
        for shard in np.unique(index.shard[pool_part]).tolist():
            shard_members = pool_part[index.shard[pool_part] == shard]
            source_number = int(index.source[shard_members[0]])
            documents = read_texts(texts, source_number, shard, index.row[shard_members])
            documents_by_number.update(zip(shard_members.tolist(), documents, strict=True))
        for number in pool_part.tolist():
            # Popped, so that a text is let go once it was looked at.
            yield number, documents_by_number.pop(number)
        pool_start = pool_stop


def _cut(
    number: int,
    document: Document,
    role: Role,
    tokenizer: TextTokenizer,
    num_tokens: int,
    cut_to: int | None,
) -> EvaluationDocument:
    # A conversation is scored by its messages, so its text stays whole as they do.
    if cut_to is not None and num_tokens > cut_to and not document.messages:
        # Cut by characters and counted again: the text's own tokens at the cut may join otherwise.
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
            document_row = {
                "id": document.id,
                "role": item.role,
                "group": document.group,
                "text": document.text,
            }
            if document.messages:
                document_row["messages"] = json.loads(document.messages)
            file.write(json.dumps(document_row, ensure_ascii=False) + "\n")


def read_other_evaluations(files: tuple[str, ...]) -> list[str]:
    """Texts of evaluation files: every string of a json or jsonl file, or a whole text file.

    Raises:
        DataError: a file cannot be read.
    """
    all_texts: list[str] = []
    for name in files:
        try:
            file_text = Path(name).expanduser().read_text(encoding="utf-8")
            if name.endswith(".json"):
                all_texts += _strings(parse_json(file_text, name, DataError))
            elif name.endswith(".jsonl"):
                all_texts += _strings(
                    [parse_json(line, name, DataError) for line in split_lines(file_text)]
                )
            else:
                all_texts.append(file_text)
        except DataError as error:
            raise DataError(f"data.cleaning.decontaminate_files: {error}") from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"data.cleaning.decontaminate_files: {name}: cannot be read ({error})."
            ) from error
    return all_texts


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []
