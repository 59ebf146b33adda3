"""Second half of the data stage: chosen texts -> token shards, mapped into memory when trained on.

A shard is `<source>-<number>-<round>.npy`, a flat array `sep d1 sep d2 … sep`, or `bos d1 sep bos
d2 sep` where another token begins documents, and `.npz` with the documents in it, written last.
Where only some tokens are targets, `.targets.npy` says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.data.encode import Encoder
from toolkit.data.overlap import Overlap
from toolkit.data.texts import TextIndex, read_texts, read_words
from toolkit.data.workers import WorkerProcesses
from toolkit.errors import ToolkitError
from toolkit.file_hashes import read_hash
from toolkit.stage import load_json, write_atomically, write_json

# A little more text than should be needed: a second round costs more than the surplus.
_MARGIN = 1.1
_FIRST_BYTES_PER_TOKEN = 5.0
"""A guess for the first round, where a limit is given in tokens; the second round knows better."""


class Frame(NamedTuple):
    """Tokens around documents.

    Attributes:
        separator: token behind every document.
        start: token before every document: the separator too, or another one (BOS).
    """

    separator: int
    start: int

    @property
    def is_shared(self) -> bool:
        """Whether a separator ends one document and begins the next."""
        return self.start == self.separator


@dataclass(frozen=True)
class _ShardTask:
    """Some documents of one text shard, to be written as a token shard at `path`."""

    texts: Path
    source: int
    shard: int
    rows: NDArray[np.int32]
    encoder: Encoder
    frame: Frame
    dtype: str
    overlap: Overlap | None
    path: Path

    def file(self, ending: str) -> Path:
        """One of the shard's files: `.npy`, `.targets.npy` or `.npz`."""
        return self.path.with_name(self.path.name + ending)

    @property
    def sums_file(self) -> Path:
        """Beside the texts, which only serve to continue: the tokens stay, as they are read."""
        return self.texts / f"tokens-{self.path.name}.json"


@dataclass
class TokenTable:
    """Documents of one source that have been tokenized; `[D]` each.

    Attributes:
        index: places of the documents in the `TextIndex`.
        file: number of each document's shard in `files`.
        start: place of the token in front of each document, within its file.
        num_tokens: tokens of each document, without those around it.
        files: shards, relative to the data folder, with their lengths in tokens.
        overlapping: documents that were left out for what they share with evaluation documents.
        largest: largest token.
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

    @property
    def num_targets(self) -> int:
        """What shares of a mixture are measured in: the tokens of all documents, and the separator
        behind each; of conversations also those tokens that are no targets of the loss."""
        return int((self.num_tokens + 1).sum())

    def take(self, which: NDArray[Any]) -> TokenTable:
        """The same with some of the documents only."""
        return replace(
            self,
            index=self.index[which],
            file=self.file[which],
            start=self.start[which],
            num_tokens=self.num_tokens[which],
        )


def tokenize(
    texts: Path,
    index: TextIndex,
    chosen: NDArray[np.int64],
    limit: int | None,
    *,
    encoder: Encoder,
    frame: Frame,
    vocabulary: int,
    overlap: Overlap | None,
    folder: Path,
    workers: WorkerProcesses,
) -> TokenTable:
    """Tokenize documents of one source in the order of their hash, until `limit` tokens are there.

    Args:
        texts: folder of the text shards.
        index: all documents.
        chosen: places of the documents that may be taken, all of one source.
        limit: tokens to stop at, the document that crosses it included; None for no limit.
        encoder: text to tokens.
        frame: tokens around every document.
        vocabulary: number of token ids, which decides how wide they are stored.
        overlap: what to leave documents out for.
        folder: folder of the token shards.
        workers: processes.
    """
    chosen = chosen[np.argsort(index.order[chosen], kind="stable")]
    byte_ends = np.cumsum(index.num_bytes[chosen])
    dtype = "uint16" if vocabulary <= 1 << 16 else "uint32"
    tables: list[TokenTable] = []
    num_done, bytes_per_token = 0, _FIRST_BYTES_PER_TOKEN
    while num_done < len(chosen):
        stop = len(chosen)
        if limit is not None:
            # Tokens are known only once a text was tokenized: each round takes as many bytes as
            # the missing tokens should have, a little more, and measures anew.
            tokens_so_far = sum(int(table.num_tokens.sum()) for table in tables)
            if tokens_so_far >= limit:
                break
            bytes_done = int(byte_ends[num_done - 1]) if num_done else 0
            wanted_bytes = bytes_done + (limit - tokens_so_far) * bytes_per_token * _MARGIN
            # At least one document a round, so that the loop always ends.
            stop = max(num_done + 1, int(np.searchsorted(byte_ends, wanted_bytes)) + 1)
            stop = min(stop, len(chosen))
        part = chosen[num_done:stop]
        tasks = (
            _ShardTask(texts, source, shard, rows, encoder, frame, dtype, overlap, folder / name)
            for source, shard, rows, name in _shards_of(index, part, round_number=len(tables))
        )
        written = list(workers.map(_write_shard, tasks))
        table = _gather(folder, written, index, part, frame)
        tables.append(table)
        num_tokens = int(table.num_tokens.sum())
        if num_tokens:
            bytes_per_token = float(index.num_bytes[table.index].sum()) / num_tokens
        num_done = stop
    return _up_to_limit(_joined(tables), index, limit)


def _up_to_limit(table: TokenTable, index: TextIndex, limit: int | None) -> TokenTable:
    """Documents in the order of their hash, up to the one that crosses the limit."""
    order = np.argsort(index.order[table.index], kind="stable")
    if limit is not None:
        tokens_before = np.cumsum(table.num_tokens[order]) - table.num_tokens[order]
        order = order[tokens_before < limit]
    return table.take(order)


def _shards_of(
    index: TextIndex, documents: NDArray[np.int64], round_number: int
) -> Iterator[tuple[int, int, NDArray[np.int32], str]]:
    """Source, shard and rows of documents of one source, and the name of their token shard."""
    shards = index.shard[documents]
    for shard in np.unique(shards).tolist():
        rows = np.sort(index.row[documents[shards == shard]])
        source = int(index.source[documents[0]])
        # The round is in the name, as a later one takes other rows of the same texts.
        yield source, shard, rows, f"{source:02d}-{shard:05d}-{round_number}"


def _write_shard(task: _ShardTask) -> tuple[str, int]:
    """Returns the shard's name and number in its source."""
    if _is_whole(task):
        return task.path.name, task.shard
    documents = read_texts(task.texts, task.source, task.shard, task.rows)
    is_clean = np.ones(len(documents), dtype=np.bool_)
    if task.overlap is not None and len(documents):
        words = read_words(task.texts, task.source, task.shard, task.rows)
        is_clean = task.overlap.is_clean(*words)
    tokens, lengths, is_target = task.encoder.encode_flat(
        [document for document, clean in zip(documents, is_clean, strict=True) if clean]
    )
    starts, end = _places(lengths, task.frame.is_shared)
    # Where each token stands: behind the token that begins its document.
    place_in_document = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.repeat(starts + 1, lengths) + place_in_document
    flat = np.full(end, task.frame.separator, dtype=task.dtype)
    flat[starts] = task.frame.start
    flat[places] = tokens
    _save_array(task.file(".npy"), flat)
    if is_target is not None:
        targets = np.zeros(len(flat), dtype=np.bool_)
        targets[places] = is_target
        _save_array(task.file(".targets.npy"), targets)
    with write_atomically(task.file(".npz"), "wb") as file:
        np.savez(file, rows=task.rows, clean=is_clean, lengths=lengths, largest=flat.max(initial=0))
    # Last, as the hashes vouch for the shard's other files.
    write_json(task.sums_file, _hash_files(task))
    return task.path.name, task.shard


def _save_array(path: Path, array: NDArray[Any]) -> None:
    with write_atomically(path, "wb") as file:
        np.save(file, array)


def _places(lengths: NDArray[np.int64], is_shared: bool) -> tuple[NDArray[np.int64], int]:
    """Where the token before each document stands in a shard, and the shard's length.

    >>> _places(np.array([2, 3]), True), _places(np.array([2, 3]), False)
    ((array([0, 3]), 8), (array([0, 4]), 9))
    """
    strides = lengths + (1 if is_shared else 2)
    return np.cumsum(strides) - strides, int(strides.sum()) + int(is_shared)


def _hash_files(task: _ShardTask) -> dict[str, str]:
    """sha256 of a shard's files, by their names."""
    paths = [task.file(ending) for ending in (".npy", ".targets.npy", ".npz")]
    return {path.name: read_hash(path) for path in paths if path.is_file()}


def _is_whole(task: _ShardTask) -> bool:
    """Whether a shard stands from before, holds these rows, and is as it was written."""
    try:
        if load_json(task.sums_file) != _hash_files(task):
            return False
        with np.load(task.file(".npz")) as columns:
            return bool(np.array_equal(columns["rows"], task.rows))
    except (ToolkitError, OSError):
        return False


def _gather(
    folder: Path,
    shards: list[tuple[str, int]],
    index: TextIndex,
    documents: NDArray[np.int64],
    frame: Frame,
) -> TokenTable:
    """The table of shards that were written, from what stands beside their tokens."""
    tables = []
    for name, shard in shards:
        of_shard = documents[index.shard[documents] == shard]
        # In the order of rows, as the shard was written.
        of_shard = of_shard[np.argsort(index.row[of_shard])]
        with np.load(folder / f"{name}.npz") as columns:
            is_clean, lengths = columns["clean"], columns["lengths"]
            largest_token = int(columns["largest"])
        starts, end = _places(lengths, frame.is_shared)
        tables.append(
            TokenTable(
                index=of_shard[is_clean],
                file=np.zeros(len(lengths), np.int32),
                start=starts,
                num_tokens=lengths,
                files=[(f"{folder.name}/{name}.npy", end)],
                overlapping=of_shard[~is_clean],
                largest=largest_token,
                has_targets=(folder / f"{name}.targets.npy").is_file(),
            )
        )
    return _joined(tables)


def _joined(tables: list[TokenTable]) -> TokenTable:
    """Tables of one source below each other, their shards numbered through."""
    empty = np.zeros(0, np.int64)
    files: list[tuple[str, int]] = []
    file_numbers = []
    for table in tables:
        file_numbers.append(table.file + len(files))
        files += table.files

    def column(name: str) -> NDArray[Any]:
        # The empty one serves a source without any documents.
        return np.concatenate([empty, *(getattr(table, name) for table in tables)])

    return TokenTable(
        index=column("index"),
        file=np.concatenate([empty, *file_numbers]).astype(np.int32),
        start=column("start"),
        num_tokens=column("num_tokens"),
        files=files,
        overlapping=column("overlapping"),
        largest=max((table.largest for table in tables), default=0),
        has_targets=any(table.has_targets for table in tables),
    )
