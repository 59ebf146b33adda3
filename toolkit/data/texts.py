"""First half of the data stage: sources -> cleaned texts in shards, with what is known of each.

A shard is `<source>-<number>.parquet` (id, group, text, messages), `.npz` (hashes, split, size) and
`.json` (counts), the last written last. After an interruption, shards that stand are not made
again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from toolkit.errors import ToolkitError
from toolkit.file_hashes import read_hash
from toolkit.stage import load_json, write_atomically, write_json

SHARD_BYTES = 2 << 20
"""Text in one shard: enough for a process to be busy with, little enough to hold several."""


@dataclass(frozen=True)
class _Batch:
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
) -> dict[str, Any]:
    """Read, clean and hash one source into shards.

    Conversations that the chat template cannot take are damaged rows: in no split.

    Returns:
        `shards`: how many; `counts`: documents and bytes by what became of them; `damaged`: the
        first messages about damage.

    Raises:
        DataError: input that cannot be read.
    """
    done = folder / f"{index:02d}.json"
    if (known := _known_source(done)) is not None:
        return known
    faults = Faults(source.skip_damaged)
    counts: Counter[str] = Counter()
    documents = read_documents(name, source, faults)
    batches = (
        _Batch(batch, source, cleaning, seed, folder / f"{index:02d}-{number:05d}", tokenizer)
        for number, batch in enumerate(_batches(documents))
    )
    number = 0
    for part in workers.map(_write_shard, batches):
        counts.update(part["counts"])
        faults.shown += part["damaged"][: max(0, SHOWN - len(faults.shown))]
        number += 1
    counts.update(faults.counts)
    result = {"shards": number, "counts": dict(counts), "damaged": faults.shown}
    write_json(done, result)
    return result


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= SHARD_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shard(batch: _Batch) -> dict[str, Any]:
    """Returns `counts` of what became of the documents, and `damaged`, messages."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (known := _known_shard(batch.path)) is not None:
        return known
    counts: Counter[str] = Counter()
    faults = Faults(batch.source.skip_damaged, counts)
    documents = batch.documents
    if batch.source.messages_field is not None:
        documents = _learnable(documents, batch.tokenizer, faults)
    kept, codes, offsets = clean_documents(documents, batch.cleaning, counts)
    words = spread(codes)
    near = batch.cleaning.near_duplicate_similarity is not None
    columns: dict[str, Any] = {
        "exact": exact_keys(words, offsets),
        "signature": signatures(words, offsets) if near else np.zeros((len(kept), 0), np.uint32),
        "split": np.array([_split_number(d, batch.source, batch.seed) for d in kept], np.int8),
        "open_to": np.array([open_mask(d, batch.source) for d in kept], np.int8),
        "order": np.array([stable_unit("order", batch.seed, d.id) for d in kept]),
        "num_bytes": np.array([len(d.text.encode()) for d in kept], np.int64),
        "words": codes,
        "word_offsets": offsets,
    }
    table = pa.table(
        {
            "id": [d.id for d in kept],
            "group": [d.group for d in kept],
            "text": pa.array([d.text for d in kept], pa.large_string()),
            "messages": pa.array([d.messages for d in kept], pa.large_string()),
        }
    )
    with write_atomically(batch.path.with_suffix(".parquet"), "wb") as file:
        pq.write_table(table, file, compression="zstd", compression_level=1, use_dictionary=False)
    with write_atomically(batch.path.with_suffix(".npz"), "wb") as file:
        np.savez(file, **columns)
    sums = {end: read_hash(batch.path.with_suffix(end)) for end in (".parquet", ".npz")}
    result = {"counts": dict(counts), "damaged": faults.shown, "sums": sums}
    write_json(batch.path.with_suffix(".json"), result)
    return result


def _known_source(done: Path) -> dict[str, Any] | None:
    """What was said of a source that was read before; None where a shard of it is damaged."""
    if not done.is_file():
        return None
    try:
        result = dict(load_json(done))
        shards = [done.with_name(f"{done.stem}-{n:05d}") for n in range(int(result["shards"]))]
    except (ToolkitError, KeyError, TypeError, ValueError):
        return None
    return result if all(_known_shard(path) is not None for path in shards) else None


def _known_shard(path: Path) -> dict[str, Any] | None:
    """What was said of a shard; None where it is not there, or is not as it was written."""
    mark = path.with_suffix(".json")
    if not mark.is_file():
        return None
    try:
        result = dict(load_json(mark))
        sums = dict(result["sums"])
        good = all(read_hash(path.with_suffix(end)) == digest for end, digest in sums.items())
    except (ToolkitError, OSError, KeyError, TypeError, ValueError):
        return None
    return result if good and len(sums) == 2 else None


def _learnable(documents: list[Document], tokenizer: Path, faults: Faults) -> list[Document]:
    """Conversations of which the chat template shows what the assistant says."""
    encoder = open_conversations(tokenizer)
    kept = []
    for document in documents:
        try:
            learned = encoder.encode(json.loads(document.messages or "[]"))
        except ConversationError as error:
            faults.report(document.id, str(error), error)
            continue
        kept.append(document)
        for remark, count in learned.remarks.items():
            faults.counts[f"{NOTE}{remark}"] += count
    return kept


def _split_number(document: Document, source: SourceSection, seed: int) -> int:
    split = assign_split(document, source, seed)
    return -1 if split is None else SPLITS.index(split)


@dataclass(frozen=True)
class TextIndex:
    """What is known of every cleaned document, without its text.

    Attributes:
        source, shard, row: where it stands, `[D]` each.
        split: index into `SPLITS`, or -1, `[D]`.
        open_to: the splits that it may be in (`open_mask`), `[D]`.
        order: a hash in [0, 1) by which documents are taken, `[D]`.
        num_bytes: UTF-8 length, `[D]`.
        exact: keys of its words, `[D, 2]`.
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
    """Gather the shards' `.npz`; signatures go to one mapped file."""
    shards = [(source, n) for source, count in enumerate(num_shards) for n in range(count)]
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("source", "shard", "row", *_COLUMNS)
    }
    file = (folder / "signatures.bin").open("wb")
    width = 0
    with file:
        for source, number in shards:
            with np.load(folder / f"{source:02d}-{number:05d}.npz") as columns:
                size = len(columns["split"])
                parts["source"].append(np.full(size, source, np.int16))
                parts["shard"].append(np.full(size, number, np.int32))
                parts["row"].append(np.arange(size, dtype=np.int32))
                for name in _COLUMNS:
                    parts[name].append(columns[name])
                signature = columns["signature"]
                width = signature.shape[1]
                signature.tofile(file)
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    total = len(arrays["split"])
    signature = (
        np.memmap(folder / "signatures.bin", np.uint32, "r", shape=(total, width))
        if total * width
        else np.zeros((total, width), np.uint32)
    )
    return TextIndex(**arrays, signature=signature)


def read_texts(folder: Path, source: int, shard: int, rows: NDArray[Any]) -> list[Document]:
    """Documents of one shard, in the order of `rows`; their `source` is left empty."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / f"{source:02d}-{shard:05d}.parquet", memory_map=False)
    taken = table.take(rows).to_pydict()
    columns = (taken["id"], taken["group"], taken["text"], taken["messages"])
    return [Document(i, "", g, t, m) for i, g, t, m in zip(*columns, strict=True)]


def read_names(folder: Path, source: int, shard: int, rows: NDArray[Any]) -> list[tuple[str, str]]:
    """Ids and groups of some documents of a shard, in the order of `rows`; no text is read."""
    import pyarrow.parquet as pq

    path = folder / f"{source:02d}-{shard:05d}.parquet"
    taken = pq.read_table(path, columns=["id", "group"], memory_map=False).take(rows).to_pydict()
    return list(zip(taken["id"], taken["group"], strict=True))


def read_words(
    folder: Path, source: int, shard: int, rows: NDArray[Any]
) -> tuple[NDArray[np.uint64], I64]:
    """Hashes of the words of some documents of a shard, with offsets (`word_hashes`)."""
    with np.load(folder / f"{source:02d}-{shard:05d}.npz") as columns:
        codes, offsets = take_rows(columns["words"], columns["word_offsets"], rows)
    return spread(codes), offsets
