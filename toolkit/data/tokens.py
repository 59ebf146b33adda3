"""Second half of the data stage: chosen texts -> token shards, mapped into memory when trained on.

A shard is `<source>-<number>-<round>.npy`, a flat array `sep d1 sep d2 … sep`, or `bos d1 sep bos
d2 sep` where another token begins documents, and `.npz` with the documents in it, written last.
Where only some tokens are targets, `.targets.npy` says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.encode import Encoder
from toolkit.data.overlap import Overlap
from toolkit.data.texts import TextIndex, read_texts, read_words
from toolkit.data.workers import WorkerProcesses
from toolkit.errors import ToolkitError
from toolkit.file_hashes import read_hash
from toolkit.stage import load_json, write_atomically, write_json

_MARGIN = 1.1
_FIRST_BYTES_PER_TOKEN = 5.0
"""A guess for the first round, where a limit is given in tokens; the second round knows better."""


@dataclass(frozen=True)
class _Task:
    texts: Path
    source: int
    shard: int
    rows: NDArray[np.int32]
    encoder: Encoder
    separator: int
    start: int
    dtype: str
    overlap: Overlap | None
    path: Path


@dataclass
class TokenTable:
    """Documents of one source that have been tokenized; `[D]` each.

    Attributes:
        index: into the `TextIndex`.
        file: number of the shard in `files`.
        start: of the token in front of the document, within its file.
        num_tokens: without separators.
        files: shards, relative to the data folder, with their lengths in tokens.
        overlapping: indices that were left out for what they share with evaluation documents.
        largest: token id.
        has_targets: whether there are `.targets.npy` files.
    """

    index: NDArray[np.int64]
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    files: list[tuple[str, int]]
    overlapping: NDArray[np.int64]
    largest: int = 0
    has_targets: bool = False

    def take(self, which: NDArray[Any]) -> TokenTable:
        """The same with some of the documents only."""
        return TokenTable(
            self.index[which],
            self.file[which],
            self.start[which],
            self.num_tokens[which],
            self.files,
            self.overlapping,
            self.largest,
            self.has_targets,
        )


def tokenize(
    texts: Path,
    index: TextIndex,
    chosen: NDArray[np.int64],
    limit: int | None,
    *,
    encoder: Encoder,
    separator: int,
    start: int,
    vocabulary: int,
    overlap: Overlap | None,
    folder: Path,
    workers: WorkerProcesses,
) -> TokenTable:
    """Tokenize documents of one source in the order of their hash, until `limit` tokens are there.

    Args:
        texts: folder of the text shards.
        index: of all documents.
        chosen: indices of the documents that may be taken, all of one source.
        limit: tokens to stop at, the document that crosses it included; None for no limit.
        encoder: text to tokens.
        separator: token behind every document.
        start: token before every document, the separator or another one.
        vocabulary: number of token ids, which decides how wide they are stored.
        overlap: what to leave documents out for.
        folder: to write to.
        workers: processes.
    """
    chosen = chosen[np.argsort(index.order[chosen], kind="stable")]
    ends = np.cumsum(index.num_bytes[chosen])
    done, bytes_per_token, number = 0, _FIRST_BYTES_PER_TOKEN, 0
    tables: list[TokenTable] = []
    while done < len(chosen):
        stop = len(chosen)
        if limit is not None:
            got = sum(int((t.num_tokens).sum()) for t in tables)
            if got >= limit:
                break
            before = int(ends[done - 1]) if done else 0
            wanted = before + (limit - got) * bytes_per_token * _MARGIN
            stop = max(done + 1, int(np.searchsorted(ends, wanted)) + 1)
        part = chosen[done : min(stop, len(chosen))]
        frame = (separator, start)
        tasks = _tasks(texts, index, part, number, encoder, frame, vocabulary, overlap, folder)
        written = list(workers.map(_write_shard, tasks))
        table = _gather(folder, written, index, part, is_shared=start == separator)
        tables.append(table)
        total = int(table.num_tokens.sum())
        if total:
            bytes_per_token = float(index.num_bytes[table.index].sum()) / total
        done, number = min(stop, len(chosen)), number + 1
    table = _joined(tables)
    order = np.argsort(index.order[table.index], kind="stable")
    if limit is not None:
        before_each = np.cumsum(table.num_tokens[order]) - table.num_tokens[order]
        order = order[before_each < limit]
    return table.take(order)


def _tasks(
    texts: Path,
    index: TextIndex,
    part: NDArray[np.int64],
    number: int,
    encoder: Encoder,
    frame: tuple[int, int],
    vocabulary: int,
    overlap: Overlap | None,
    folder: Path,
) -> Iterator[_Task]:
    dtype = "uint16" if vocabulary <= 1 << 16 else "uint32"
    shards = index.shard[part]
    for shard in np.unique(shards).tolist():
        rows = np.sort(index.row[part[shards == shard]])
        source = int(index.source[part[0]])
        path = folder / f"{source:02d}-{shard:05d}-{number}"
        yield _Task(texts, source, shard, rows, encoder, *frame, dtype, overlap, path)


def _write_shard(task: _Task) -> tuple[str, int]:
    """Returns the shard's name and number in its source."""
    mark = task.path.with_name(task.path.name + ".npz")
    if _is_whole(task, mark):
        return task.path.name, task.shard
    documents = read_texts(task.texts, task.source, task.shard, task.rows)
    clean = np.ones(len(documents), dtype=np.bool_)
    if task.overlap is not None and len(documents):
        words = read_words(task.texts, task.source, task.shard, task.rows)
        clean = task.overlap.is_clean(*words)
    tokens, lengths, is_target = task.encoder.encode_flat(
        [document for document, good in zip(documents, clean, strict=True) if good]
    )
    # A separator ends one document and begins the next, unless another token begins documents.
    is_shared = task.start == task.separator
    starts, end = _places(lengths, is_shared)
    within = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.repeat(starts + 1, lengths) + within
    flat = np.full(end, task.separator, dtype=task.dtype)
    flat[starts] = task.start
    flat[places] = tokens
    targets = None
    if is_target is not None:
        targets = np.zeros(len(flat), dtype=np.bool_)
        targets[places] = is_target
    for ending, array in ((".npy", flat), (".targets.npy", targets)):
        if array is not None:
            with write_atomically(task.path.with_name(task.path.name + ending), "wb") as file:
                np.save(file, array)
    with write_atomically(mark, "wb") as file:
        np.savez(file, rows=task.rows, clean=clean, lengths=lengths, largest=flat.max())
    write_json(_sums_file(task), _sums(task.path))
    return task.path.name, task.shard


def _places(lengths: NDArray[np.int64], is_shared: bool) -> tuple[NDArray[np.int64], int]:
    """Where the token before each document stands in a shard, and the shard's length.

    >>> _places(np.array([2, 3]), True), _places(np.array([2, 3]), False)
    ((array([0, 3]), 8), (array([0, 4]), 9))
    """
    strides = lengths + (1 if is_shared else 2)
    total = int(strides.sum())
    return np.cumsum(strides) - strides, total + int(is_shared)


def _sums(path: Path) -> dict[str, str]:
    """sha256 of a shard's files."""
    names = (f"{path.name}{end}" for end in (".npy", ".targets.npy", ".npz"))
    return {n: read_hash(path.with_name(n)) for n in names if path.with_name(n).is_file()}


def _sums_file(task: _Task) -> Path:
    """Beside the texts, which only serve to continue: the tokens stay, as they are read."""
    return task.texts / f"tokens-{task.path.name}.json"


def _is_whole(task: _Task, mark: Path) -> bool:
    """Whether a shard stands from before, holds these rows, and is as it was written."""
    try:
        if load_json(_sums_file(task)) != _sums(task.path):
            return False
        with np.load(mark) as columns:
            return bool(np.array_equal(columns["rows"], task.rows))
    except (ToolkitError, OSError):
        return False


def _gather(
    folder: Path,
    shards: list[tuple[str, int]],
    index: TextIndex,
    part: NDArray[np.int64],
    *,
    is_shared: bool,
) -> TokenTable:
    tables = []
    for name, shard in shards:
        here = part[index.shard[part] == shard]
        here = here[np.argsort(index.row[here])]
        with np.load(folder / f"{name}.npz") as columns:
            clean, lengths = columns["clean"], columns["lengths"]
            largest = int(columns["largest"])
        starts, end = _places(lengths, is_shared)
        tables.append(
            TokenTable(
                here[clean],
                np.zeros(len(lengths), np.int32),
                starts,
                lengths,
                [(f"{folder.name}/{name}.npy", end)],
                here[~clean],
                largest,
                (folder / f"{name}.targets.npy").is_file(),
            )
        )
    return _joined(tables)


def _joined(tables: list[TokenTable]) -> TokenTable:
    empty = np.zeros(0, np.int64)
    files: list[tuple[str, int]] = []
    file_numbers = []
    for table in tables:
        file_numbers.append(table.file + len(files))
        files += table.files

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([empty, *(getattr(table, name) for table in tables)])

    return TokenTable(
        column("index"),
        np.concatenate([empty, *file_numbers]).astype(np.int32),
        column("start"),
        column("num_tokens"),
        files,
        column("overlapping"),
        max((table.largest for table in tables), default=0),
        any(table.has_targets for table in tables),
    )
