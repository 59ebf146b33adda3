"""First half of the data stage: sources -> cleaned texts in shards, with what is known of each.

A shard is `<source>-<number>.parquet` (id, group, text, messages), `.npz` (hashes, split, size) and
`.json` (counts), the last written last. After an interruption, shards that stand are not made
again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.clean import clean_documents
from toolkit.data.config import SPLITS, CleaningSection, SourceSection
from toolkit.data.conversations import ConversationError
from toolkit.data.duplicates import exact_keys, signatures
from toolkit.data.encode import open_conversations
from toolkit.data.formats import NOTE, SHOWN, Faults
from toolkit.data.sources import Document, read_documents
from toolkit.data.split import assign_split, open_mask, stable_unit
from toolkit.data.words import I64, spread, take_rows
from toolkit.data.workers import WorkerProcesses
from toolkit.errors import DataError, ToolkitError
from toolkit.file_hashes import read_hash
from toolkit.stage import load_json, write_atomically, write_json

SHARD_BYTES = 2 << 20
"""Text in one shard: enough for a process to be busy with, little enough to hold several."""


@dataclass(frozen=True)
class SourceTexts:
    """What reading a source came to.

    Attributes:
        shards: number of its shards.
        counts: documents and (`…, bytes`) their size by what became of them.
        damaged: first messages about damage.
    """

    shards: int
    counts: dict[str, int]
    damaged: list[str]


@dataclass(frozen=True)
class _ShardTexts:
    """What cleaning a shard came to: as of a source, and sha256 of its files by their endings."""

    counts: dict[str, int]
    damaged: list[str]
    sums: dict[str, str]


@dataclass(frozen=True)
class _Batch:
    """Documents to be cleaned and written as the shard at `path`."""

    documents: list[Document]
    source: SourceSection
    cleaning: CleaningSection
    seed: int
    path: Path
    tokenizer: Path


def write_texts(
    index: int,
    name: str,
    source: SourceSection,
    cleaning: CleaningSection,
    *,
    seed: int,
    folder: Path,
    tokenizer: Path,
    workers: WorkerProcesses,
    parent: SourceSection | None = None,
) -> SourceTexts:
    """Read, clean and hash one source into shards.

    Conversations that the chat template cannot take are damaged rows: in no split. Of texts that
    were written from the documents of a parent source those stay whose document it trains on.

    Raises:
        DataError: input that cannot be read.
    """
    mark = folder / f"{index:02d}.json"
    if (known_source := _known_source(mark)) is not None:
        return known_source
    faults = Faults(source.skip_damaged)
    counts: Counter[str] = Counter()
    documents = read_documents(name, source, faults)
    if parent is not None:
        documents = _of_training(documents, name, parent, seed, counts)
    batches = (
        _Batch(batch, source, cleaning, seed, folder / f"{index:02d}-{number:05d}", tokenizer)
        for number, batch in enumerate(_batches(documents))
    )
    num_shards = 0
    for shard in workers.map(_write_shard, batches):
        counts.update(shard.counts)
        faults.shown += shard.damaged[: max(0, SHOWN - len(faults.shown))]
        num_shards += 1
    counts.update(faults.counts)
    # The mark is written after all shards: where it stands, the source has been read to its end.
    result = SourceTexts(num_shards, dict(counts), faults.shown)
    write_json(mark, asdict(result))
    return result


def _of_training(
    documents: Iterable[Document],
    name: str,
    parent: SourceSection,
    seed: int,
    counts: Counter[str],
) -> Iterator[Document]:
    """Written texts whose documents are for training; a text's id is its document's, `~` and a
    number.

    Raises:
        DataError: a text does not say which document it is from.
    """
    for document in documents:
        parent_id, sign, _ = document.id.removeprefix(f"{name}/").rpartition("~")
        if not sign:
            raise DataError(
                f"data.sources.{name}: the text {document.id!r} does not say which document it was "
                "written from; give files that `toolkit data write` made, or drop written_from."
            )
        # Splits follow from ids and groups, so the parent document itself need not be read.
        if assign_split(Document(parent_id, "", document.group, ""), parent, seed) == "train":
            yield document
        else:
            counts["from documents of another split"] += 1
            num_bytes = len(document.text.encode())
            counts["from documents of another split, bytes"] += num_bytes


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if num_characters >= SHARD_BYTES:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _write_shard(batch: _Batch) -> _ShardTexts:
    if (known_shard := _known_shard(batch.path)) is not None:
        return known_shard
    counts: Counter[str] = Counter()
    faults = Faults(batch.source.skip_damaged, counts)
    documents = batch.documents
    if batch.source.messages_field is not None:
        # Before splits are drawn, so that no split counts what cannot be learned from.
        documents = _learnable(documents, batch.tokenizer, faults)
    cleaned, codes, offsets = clean_documents(documents, batch.cleaning, counts)
    _write_documents(batch.path.with_suffix(".parquet"), cleaned)
    with write_atomically(batch.path.with_suffix(".npz"), "wb") as file:
        np.savez(file, **_columns_of(batch, cleaned, codes, offsets))
    # The JSON file comes last: its hashes vouch for the other two.
    sums = {ending: read_hash(batch.path.with_suffix(ending)) for ending in (".parquet", ".npz")}
    result = _ShardTexts(dict(counts), faults.shown, sums)
    write_json(batch.path.with_suffix(".json"), asdict(result))
    return result


def _columns_of(
    batch: _Batch, cleaned: list[Document], codes: NDArray[np.uint32], offsets: I64
) -> dict[str, Any]:
    """What is known of each document without its text, by the names of `TextIndex`, and the codes
    of all words."""
    words = spread(codes)
    needs_signatures = batch.cleaning.near_duplicate_similarity is not None
    no_signatures = np.zeros((len(cleaned), 0), np.uint32)
    splits = [_split_number(document, batch.source, batch.seed) for document in cleaned]
    order = [stable_unit("order", batch.seed, document.id) for document in cleaned]
    return {
        "exact": exact_keys(words, offsets),
        "signature": signatures(words, offsets) if needs_signatures else no_signatures,
        "split": np.array(splits, np.int8),
        "open_to": np.array([open_mask(document, batch.source) for document in cleaned], np.int8),
        "order": np.array(order),
        "num_bytes": np.array([len(document.text.encode()) for document in cleaned], np.int64),
        "words": codes,
        "word_offsets": offsets,
    }


def _write_documents(path: Path, documents: list[Document]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": [document.id for document in documents],
            "group": [document.group for document in documents],
            # Offsets of plain strings have 32 bits, and so end at 2 GiB of text.
            "text": pa.array([document.text for document in documents], pa.large_string()),
            "messages": pa.array([document.messages for document in documents], pa.large_string()),
        }
    )
    with write_atomically(path, "wb") as file:
        # Texts hardly ever repeat: a dictionary of them costs time and saves nothing.
        pq.write_table(table, file, compression="zstd", compression_level=1, use_dictionary=False)


def _known_source(mark: Path) -> SourceTexts | None:
    """What was said of a source that was read before; None where a shard of it is damaged."""
    if not mark.is_file():
        return None
    try:
        result = SourceTexts(**load_json(mark))
        shards = [mark.with_name(f"{mark.stem}-{n:05d}") for n in range(int(result.shards))]
    except (ToolkitError, TypeError, ValueError):
        return None
    return result if all(_known_shard(path) is not None for path in shards) else None


def _known_shard(path: Path) -> _ShardTexts | None:
    """What was said of a shard; None where it is not there, or is not as it was written."""
    mark = path.with_suffix(".json")
    if not mark.is_file():
        return None
    try:
        result = _ShardTexts(**load_json(mark))
        is_whole = all(
            read_hash(path.with_suffix(ending)) == digest for ending, digest in result.sums.items()
        )
    except (ToolkitError, OSError, AttributeError, TypeError, ValueError):
        return None
    return result if is_whole and len(result.sums) == 2 else None


def _learnable(documents: list[Document], tokenizer: Path, faults: Faults) -> list[Document]:
    """Conversations of which the chat template shows what the assistant says."""
    encoder = open_conversations(tokenizer)
    learnable = []
    for document in documents:
        try:
            learned = encoder.encode(json.loads(document.messages or "[]"))
        except ConversationError as error:
            faults.report(document.id, str(error), error)
            continue
        learnable.append(document)
        for remark, count in learned.remarks.items():
            faults.counts[f"{NOTE}{remark}"] += count
    return learnable


def _split_number(document: Document, source: SourceSection, seed: int) -> int:
    split = assign_split(document, source, seed)
    return -1 if split is None else SPLITS.index(split)


@dataclass(frozen=True)
class TextIndex:
    """What is known of every cleaned document, without its text.

    Attributes:
        source, shard, row: where each document stands, `[D]`.
        split: index into `SPLITS`, or -1, `[D]`.
        open_to: splits that each may be in (`open_mask`), `[D]`.
        order: hash in [0, 1) by which documents are taken, `[D]`.
        num_bytes: UTF-8 length, `[D]`.
        exact: keys of the words, `[D, 2]`.
        signature: MinHash, `[D, P]`, mapped from disk.
    """

    source: NDArray[np.int16]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    split: NDArray[np.int8]
    open_to: NDArray[np.int8]
    order: NDArray[np.float64]
    num_bytes: NDArray[np.int64]
    exact: NDArray[np.uint64]
    signature: NDArray[np.uint32]


_COLUMNS = ("split", "open_to", "order", "num_bytes", "exact")


def load_index(folder: Path, num_shards: list[int]) -> TextIndex:
    """Gather the shards' `.npz`; signatures, most of the bytes, go to one mapped file.

    Raises:
        DataError: there is no shard.
    """
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("source", "shard", "row", *_COLUMNS)
    }
    num_hashes = 0
    with (folder / "signatures.bin").open("wb") as signatures_file:
        for source, shard in ((s, n) for s, count in enumerate(num_shards) for n in range(count)):
            with np.load(folder / f"{source:02d}-{shard:05d}.npz") as columns:
                num_documents = len(columns["split"])
                parts["source"].append(np.full(num_documents, source, np.int16))
                parts["shard"].append(np.full(num_documents, shard, np.int32))
                parts["row"].append(np.arange(num_documents, dtype=np.int32))
                for name in _COLUMNS:
                    parts[name].append(columns[name])
                signature = columns["signature"]
                num_hashes = signature.shape[1]
                signature.tofile(signatures_file)
    if not parts["source"]:
        raise DataError(
            "data: no source holds a document; check their files and, where damage is skipped, "
            "what was damaged."
        )
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    shape = len(arrays["split"]), num_hashes
    signature = (
        # An empty file cannot be mapped.
        np.memmap(folder / "signatures.bin", np.uint32, "r", shape=shape)
        if shape[0] * shape[1]
        else np.zeros(shape, np.uint32)
    )
    return TextIndex(**arrays, signature=signature)


def read_texts(folder: Path, source: int, shard: int, rows: NDArray[Any]) -> list[Document]:
    """Documents of one shard, in the order of `rows`; their `source` is left empty."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / f"{source:02d}-{shard:05d}.parquet", memory_map=False)
    columns = table.take(rows).to_pydict()
    fields = (columns[name] for name in ("id", "group", "text", "messages"))
    return [
        Document(identity, "", group, text, messages)
        for identity, group, text, messages in zip(*fields, strict=True)
    ]


def read_names(folder: Path, source: int, shard: int, rows: NDArray[Any]) -> list[tuple[str, str]]:
    """Ids and groups of some documents of a shard, in the order of `rows`; no text is read."""
    import pyarrow.parquet as pq

    path = folder / f"{source:02d}-{shard:05d}.parquet"
    table = pq.read_table(path, columns=["id", "group"], memory_map=False)
    columns = table.take(rows).to_pydict()
    return list(zip(columns["id"], columns["group"], strict=True))


def read_words(
    folder: Path, source: int, shard: int, rows: NDArray[Any]
) -> tuple[NDArray[np.uint64], I64]:
    """Hashes of the words of some documents of a shard, with offsets (`word_hashes`)."""
    with np.load(folder / f"{source:02d}-{shard:05d}.npz") as columns:
        codes, offsets = take_rows(columns["words"], columns["word_offsets"], rows)
    return spread(codes), offsets
