"""Training blocks, put together from memory-mapped token shards when they are asked for.

Legend: B blocks, T tokens a block.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.mixture import Share, block_of, place, taken
from toolkit.data.packing import PackTable
from toolkit.errors import DataError
from toolkit.stage import load_json, write_atomically, write_json

IGNORED = -100
"""Label of positions without a target; the loss passes over it."""

BLOCKS = "blocks.json"
I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Blocks ready for training.

    Attributes:
        input_ids: `[B, T]`.
        labels: `[B, T]`, the token that follows each input, or `IGNORED`.
        segments: `[B, T]`, equal within one piece of a document, -1 in padding. Attention and
            positions stay within a segment.
    """

    input_ids: I32
    labels: I32
    segments: I32

    @property
    def num_targets(self) -> int:
        return int((self.labels != IGNORED).sum())


class _Source:
    """The shards of one source and its pieces, opened when first read."""

    def __init__(self, folder: Path, shards: list[tuple[str, int]], has_targets: bool) -> None:
        self._folder = folder
        self._names = [name for name, _ in shards]
        self._bases = [0, *np.cumsum([length for _, length in shards]).tolist()]
        self._has_targets = has_targets
        self._open: dict[str, NDArray[Any]] = {}

    def piece(self, start: int, length: int) -> tuple[I32, I32]:
        """Inputs and labels, `[length]` each, from a place in the row of all shards."""
        number = bisect.bisect_right(self._bases, start) - 1
        inner = start - self._bases[number]
        tokens = self._array(self._names[number])[inner : inner + length + 1].astype(np.int32)
        labels = tokens[1:]
        if self._has_targets:
            name = self._names[number].removesuffix(".npy") + ".targets.npy"
            is_target = self._array(name)[inner + 1 : inner + length + 1]
            labels = np.where(is_target, labels, np.int32(IGNORED))
        return tokens[:-1], labels

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._open:
            if len(self._open) > 256:  # of thousands of shards, the system limits open files
                self._open.clear()
            try:
                self._open[name] = np.load(self._folder / name, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{self._folder / name}: is missing or damaged ({error}); remove the data "
                    "folder and run the stage again."
                ) from error
        return self._open[name]


class StageBlocks:
    """One stage of training: positions from 0 to `num_positions`, each a block.

    Attributes:
        name: of the stage.
        sequence_length: T.
        num_positions: blocks in this stage, repeats included.
        num_targets: about how many targets they have together.
        shares: sources and their counts.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        separator: int,
        sources: dict[str, _Source],
        entry: dict[str, Any],
        epochs: int,
    ) -> None:
        self.name = str(entry["name"])
        self.sequence_length = int(entry["sequence_length"])
        self._seed, self._separator = seed, separator
        self._sources, self._folder = sources, folder
        rows = entry["shares"]
        self.shares = [Share(r["source"], r["num_blocks"], r["count"] * epochs) for r in rows]
        self._counts = [share.count for share in self.shares]
        self._turns: list[tuple[int, list[int], list[int]]] = [(0, [0] * len(rows), self._counts)]
        self._packs = [str(row["pack"]) for row in rows]
        self._tables: dict[str, tuple[NDArray[Any], ...]] = {}
        self.num_positions = sum(self._counts)
        self.num_targets = round(
            sum(
                s.count * r["num_targets"] / s.num_blocks
                for s, r in zip(self.shares, rows, strict=True)
            )
        )

    def read(self, positions: Sequence[int]) -> Batch:
        """Blocks at the given positions, found in constant time each.

        Raises:
            IndexError: a position is not in `[0, num_positions)`.
        """
        shape = (len(positions), self.sequence_length)
        input_ids = np.full(shape, self._separator, dtype=np.int32)
        labels = np.full(shape, IGNORED, dtype=np.int32)
        segments = np.full(shape, -1, dtype=np.int32)
        for row, position in enumerate(positions):
            source, pieces = self._pieces(int(position))
            start = 0
            for number, (begin, length) in enumerate(pieces):
                stop = start + length
                input_ids[row, start:stop], labels[row, start:stop] = source.piece(begin, length)
                segments[row, start:stop] = number
                start = stop
        return Batch(input_ids, labels, segments)

    def source_at(self, position: int) -> str:
        """Name of the source whose block stands at a position."""
        return self.shares[self._place(position)[0]].source

    def raise_share(self, position: int, sources: Collection[str], factor: float) -> float:
        """From a position on, give some sources a larger share of what is left of the stage.

        The stage stays as long as it was, so others are seen less. What comes at which position is
        still a pure function, of the changes as well.

        Args:
            position: the first one to change.
            sources: names of those to see more of.
            factor: of their share of the rest; at most half of the rest becomes theirs.

        Returns:
            Their new share of the positions that are left.
        """
        start, used, counts = self._turns[-1]
        if not start <= position < self.num_positions:
            return 0.0
        here = taken(position - start, counts)
        used = [before + more for before, more in zip(used, here, strict=True)]
        left = self.num_positions - position
        chosen = [share.source in sources for share in self.shares]
        rest = [share.count - taken for share, taken in zip(self.shares, used, strict=True)]
        rest = [max(count, 0) for count in rest]
        old = sum(count for count, mine in zip(rest, chosen, strict=True) if mine)
        wanted = min(round(old * factor), max(old, left // 2))
        new = [0] * len(rest)
        for group, total in ((True, wanted), (False, left - wanted)):
            members = [n for n, mine in enumerate(chosen) if mine is group]
            weight = sum(rest[n] for n in members)
            for n in members:
                share = round(total * rest[n] / weight) if weight else 0
                new[n] = min(share, total)
                total -= new[n]
                weight -= rest[n]
        if sum(new) == left and wanted:
            self._turns.append((position, used, new))
        return wanted / left

    def _place(self, position: int) -> tuple[int, int]:
        start, used, counts = next(turn for turn in reversed(self._turns) if turn[0] <= position)
        number, earlier = place(position - start, counts)
        return number, used[number] + earlier

    def _pieces(self, position: int) -> tuple[_Source, list[tuple[int, int]]]:
        if not 0 <= position < self.num_positions:
            raise IndexError(f"{self.name}: position {position} of {self.num_positions}")
        number, earlier = self._place(position)
        share = self.shares[number]
        block = block_of(self._seed, self.name, share, earlier)
        starts, lengths, first = self._table(self._packs[number])
        part = slice(int(first[block]), int(first[block + 1]))
        pairs = zip(starts[part].tolist(), lengths[part].tolist(), strict=True)
        return self._sources[share.source], list(pairs)

    def _table(self, pack: str) -> tuple[NDArray[Any], ...]:
        if pack not in self._tables:
            self._tables[pack] = tuple(
                np.load(self._folder / f"{pack}.{name}.npy", mmap_mode="r")
                for name in ("start", "length", "first")
            )
        return self._tables[pack]


@dataclass(frozen=True)
class Blocks:
    """All stages of a data folder.

    Attributes:
        stages: in their order, at least one.
        largest_token: that any block holds.
    """

    stages: tuple[StageBlocks, ...]
    largest_token: int

    @classmethod
    def open(cls, folder: Path, epochs: int = 1, seed: int | None = None) -> Blocks:
        """Open `runs/<recipe>/data`; nothing large is read.

        Args:
            folder: of the data stage.
            epochs: passes over every stage.
            seed: of the blocks' order; by default that of the data stage.

        Raises:
            ToolkitError: the folder holds no blocks.
        """
        table = load_json(folder / BLOCKS)
        seed = int(table["seed"]) if seed is None else seed
        sources = {
            name: _Source(folder, [(n, int(k)) for n, k in entry["shards"]], entry["has_targets"])
            for name, entry in table["sources"].items()
        }
        stages = tuple(
            StageBlocks(folder, seed, table["separator"], sources, entry, epochs)
            for entry in table["stages"]
        )
        return cls(stages, int(table["largest_token"]))


def write_pack(folder: Path, name: str, table: PackTable, document_starts: NDArray[Any]) -> None:
    """Write the pieces of a source's blocks.

    Args:
        folder: of the data stage.
        name: such as `packs/news-512`.
        table: from packing.
        document_starts: of each document in the row of all shards of its source.
    """
    columns: dict[str, NDArray[Any]] = {
        "start": (document_starts[table.document] + table.start).astype(np.int64),
        "length": table.length.astype(np.int32),
        "first": table.first,
    }
    for column, values in columns.items():
        with write_atomically(folder / f"{name}.{column}.npy", "wb") as file:
            np.save(file, values)


def write_blocks(folder: Path, table: dict[str, Any]) -> None:
    """Write the list of sources and stages that `Blocks.open` reads."""
    write_json(folder / BLOCKS, table)
