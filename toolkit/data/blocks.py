"""Training blocks, put together from memory-mapped token shards when they are asked for.

Legend: B blocks, T tokens a block.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class SourceEntry:
    """What `blocks.json` says of a source.

    Attributes:
        shards: token files relative to the data folder, with their lengths in tokens.
        has_targets: whether only some of its tokens are targets.
    """

    shards: list[tuple[str, int]]
    has_targets: bool


@dataclass(frozen=True)
class ShareEntry:
    """What `blocks.json` says of a source in a stage.

    Attributes:
        source: name of the source.
        pack: its pieces at the stage's length, such as `packs/00-512`.
        num_blocks: different blocks that it has.
        num_targets: targets of all these blocks.
        count: positions of the stage that go to it in one epoch, repeats included.
    """

    source: str
    pack: str
    num_blocks: int
    num_targets: int
    count: int


@dataclass(frozen=True)
class StageEntry:
    """What `blocks.json` says of a stage of training."""

    name: str
    sequence_length: int
    shares: list[ShareEntry]


@dataclass(frozen=True)
class BlocksTable:
    """The contents of `blocks.json`.

    Attributes:
        seed: seed of the data stage, which decides the order of blocks.
        separator: token between documents.
        largest_token: largest token that any block holds.
        sources: shards by name of the source.
        stages: stages of training, in their order.
    """

    seed: int
    separator: int
    largest_token: int
    sources: dict[str, SourceEntry]
    stages: list[StageEntry]


def _load_array(path: Path) -> NDArray[Any]:
    """
    Raises:
        DataError: it is not there, or is no array.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: is missing or damaged ({error}); remove the data folder and run the stage "
            "again."
        ) from error
    return array


class _SourceTokens:
    """The token shards of one source, opened when first read."""

    def __init__(self, folder: Path, entry: SourceEntry) -> None:
        self._folder = folder
        self._names = [name for name, _ in entry.shards]
        self._shard_starts = [0, *np.cumsum([length for _, length in entry.shards]).tolist()]
        self._has_targets = entry.has_targets
        self._open: dict[str, NDArray[Any]] = {}

    def read_piece(self, start: int, length: int) -> tuple[I32, I32]:
        """Inputs and labels, `[length]` each, from a place in the row of all shards."""
        shard = bisect.bisect_right(self._shard_starts, start) - 1
        first = start - self._shard_starts[shard]
        # One token more than inputs: each label is the token that follows its input.
        shard_tokens = self._array(self._names[shard])[first : first + length + 1].astype(np.int32)
        token_labels = shard_tokens[1:]
        if self._has_targets:
            targets_name = self._names[shard].removesuffix(".npy") + ".targets.npy"
            is_target = self._array(targets_name)[first + 1 : first + length + 1]
            token_labels = np.where(is_target, token_labels, np.int32(IGNORED))
        return shard_tokens[:-1], token_labels

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._open:
            if len(self._open) > 256:  # of thousands of shards, the system limits open files
                self._open.clear()
            self._open[name] = _load_array(self._folder / name)
        return self._open[name]


class _Mixture(NamedTuple):
    """Counts of the sources of a stage from a position on.

    Attributes:
        start: first position that it holds for.
        used: blocks of each source before that.
        counts: blocks of each source from there to the end of the stage.
    """

    start: int
    used: list[int]
    counts: list[int]


def _divide(total: int, weights: Sequence[int]) -> list[int]:
    """A total in whole parts, in proportion to weights.

    >>> _divide(5, [1, 2]), _divide(3, [0, 0])
    ([2, 3], [0, 0])
    """
    parts: list[int] = []
    weight_left = sum(weights)
    for weight in weights:
        part = min(round(total * weight / weight_left) if weight_left else 0, total)
        parts.append(part)
        total -= part
        weight_left -= weight
    return parts


class StageBlocks:
    """One stage of training: positions from 0 to `num_positions`, each a block.

    Attributes:
        name: name of the stage.
        sequence_length: T.
        num_positions: blocks in this stage, repeats included.
        num_targets: about how many targets they have together.
        shares: sources and their counts over all epochs.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        separator: int,
        sources: dict[str, _SourceTokens],
        entry: StageEntry,
        epochs: int,
    ) -> None:
        self.name = entry.name
        self.sequence_length = entry.sequence_length
        self._seed, self._separator = seed, separator
        self._sources, self._folder = sources, folder
        self.shares = [
            Share(share.source, share.num_blocks, share.count * epochs) for share in entry.shares
        ]
        source_counts = [share.count for share in self.shares]
        self._mixtures = [_Mixture(0, [0] * len(source_counts), source_counts)]
        self._packs = [share.pack for share in entry.shares]
        self._tables: dict[str, tuple[NDArray[Any], ...]] = {}
        self.num_positions = sum(source_counts)
        targets_of_shares = (
            count * share.num_targets / share.num_blocks
            for count, share in zip(source_counts, entry.shares, strict=True)
        )
        self.num_targets = round(sum(targets_of_shares))

    def read(self, positions: Sequence[int]) -> Batch:
        """Blocks at the given positions, found in constant time each.

        Raises:
            IndexError: a position is not in `[0, num_positions)`.
        """
        batch_shape = (len(positions), self.sequence_length)
        # What stays free at a block's end holds separators that are in no segment and no target.
        input_ids = np.full(batch_shape, self._separator, dtype=np.int32)
        labels = np.full(batch_shape, IGNORED, dtype=np.int32)
        segments = np.full(batch_shape, -1, dtype=np.int32)
        for row_index, position in enumerate(positions):
            tokens, pieces = self._pieces_at(int(position))
            row_start = 0
            for piece_number, (piece_start, length) in enumerate(pieces):
                row_place = row_index, slice(row_start, row_start + length)
                input_ids[row_place], labels[row_place] = tokens.read_piece(piece_start, length)
                segments[row_place] = piece_number
                row_start += length
        return Batch(input_ids, labels, segments)

    def source_at(self, position: int) -> str:
        """Name of the source whose block stands at a position."""
        return self.shares[self._place(position)[0]].source

    def raise_share(self, position: int, sources: Collection[str], factor: float) -> float:
        """From a position on, give some sources a larger share of what is left of the stage.

        The stage stays as long as it was, so others are seen less. What comes at which position is
        still a pure function, of the changes as well.

        Args:
            position: first position that changes.
            sources: names of the sources to see more of.
            factor: how many times their share of the rest; at most half of the rest becomes theirs.

        Returns:
            Their new share of the positions that are left.
        """
        last_mixture = self._mixtures[-1]
        if not last_mixture.start <= position < self.num_positions:
            return 0.0
        used_here = taken(position - last_mixture.start, last_mixture.counts)
        used = [before + here for before, here in zip(last_mixture.used, used_here, strict=True)]
        positions_left = self.num_positions - position
        is_raised = [share.source in sources for share in self.shares]
        # What was to come of each source; one that was raised before may have had its count.
        rest = [max(s.count - count, 0) for s, count in zip(self.shares, used, strict=True)]
        rest_of_raised = sum(count for count, raised in zip(rest, is_raised, strict=True) if raised)
        # Never less than was to come anyway, and no more than half: the others are not crowded out.
        wanted = min(round(rest_of_raised * factor), max(rest_of_raised, positions_left // 2))
        new_counts = [0] * len(rest)
        for raised, part_total in ((True, wanted), (False, positions_left - wanted)):
            members = [number for number, flag in enumerate(is_raised) if flag is raised]
            for number, count in zip(
                members, _divide(part_total, [rest[m] for m in members]), strict=True
            ):
                new_counts[number] = count
        # Where one side has no blocks to come, its part goes to nobody: then all stays as it was.
        if sum(new_counts) != positions_left or not wanted:
            return rest_of_raised / positions_left
        self._mixtures.append(_Mixture(position, used, new_counts))
        return wanted / positions_left

    def _place(self, position: int) -> tuple[int, int]:
        """Number of the source at a position, and how many of its blocks came before."""
        mixture = next(m for m in reversed(self._mixtures) if m.start <= position)
        source_number, earlier = place(position - mixture.start, mixture.counts)
        return source_number, mixture.used[source_number] + earlier

    def _pieces_at(self, position: int) -> tuple[_SourceTokens, list[tuple[int, int]]]:
        """Tokens of the source at a position, and start and length of every piece of its block."""
        if not 0 <= position < self.num_positions:
            raise IndexError(f"{self.name}: position {position} of {self.num_positions}")
        source_number, earlier = self._place(position)
        share = self.shares[source_number]
        block = block_of(self._seed, self.name, share, earlier)
        piece_starts, piece_lengths, first_pieces = self._table(self._packs[source_number])
        pieces = slice(int(first_pieces[block]), int(first_pieces[block + 1]))
        pairs = zip(piece_starts[pieces].tolist(), piece_lengths[pieces].tolist(), strict=True)
        return self._sources[share.source], list(pairs)

    def _table(self, pack: str) -> tuple[NDArray[Any], ...]:
        if pack not in self._tables:
            self._tables[pack] = tuple(
                _load_array(self._folder / f"{pack}.{name}.npy")
                for name in ("start", "length", "first")
            )
        return self._tables[pack]


@dataclass(frozen=True)
class Blocks:
    """All stages of a data folder.

    Attributes:
        stages: stages of training in their order, at least one.
        largest_token: largest token that any block holds.
    """

    stages: tuple[StageBlocks, ...]
    largest_token: int

    @classmethod
    def open(cls, folder: Path, epochs: int = 1, seed: int | None = None) -> Blocks:
        """Open `runs/<recipe>/data`; nothing large is read.

        Args:
            folder: folder of the data stage.
            epochs: passes over every stage.
            seed: seed of the blocks' order; by default that of the data stage.

        Raises:
            ToolkitError: the folder holds no blocks.
        """
        table = read_blocks_table(folder)
        seed = table.seed if seed is None else seed
        sources = {name: _SourceTokens(folder, entry) for name, entry in table.sources.items()}
        stages = tuple(
            StageBlocks(folder, seed, table.separator, sources, entry, epochs)
            for entry in table.stages
        )
        return cls(stages, table.largest_token)


def find_seen_tokens(folder: Path, num_tokens: int) -> NDArray[np.bool_]:
    """Which tokens stand in the training blocks of a data folder, `[num_tokens]`."""
    table = read_blocks_table(folder)
    is_seen = np.zeros(num_tokens, np.bool_)
    is_seen[table.separator] = True
    for entry in table.sources.values():
        for name, _ in entry.shards:
            is_seen[np.unique(_load_array(folder / name))] = True
    return is_seen


def write_pack(folder: Path, name: str, table: PackTable, document_starts: NDArray[Any]) -> None:
    """Write the pieces of a source's blocks.

    Args:
        folder: folder of the data stage.
        name: name of the pack, such as `packs/00-512`.
        table: pieces and blocks, from packing.
        document_starts: place of each document in the row of all shards of its source.
    """
    column_values: dict[str, NDArray[Any]] = {
        "start": (document_starts[table.document] + table.start).astype(np.int64),
        "length": table.length.astype(np.int32),
        "first": table.first,
    }
    for column_name, column_array in column_values.items():
        with write_atomically(folder / f"{name}.{column_name}.npy", "wb") as file:
            np.save(file, column_array)


def write_blocks(folder: Path, table: BlocksTable) -> None:
    """Write the list of sources and stages that `Blocks.open` reads."""
    write_json(folder / BLOCKS, asdict(table))


def read_blocks_table(folder: Path) -> BlocksTable:
    """Read the list of sources and stages of a data folder.

    Raises:
        ToolkitError: the folder holds no blocks.
    """
    values = load_json(folder / BLOCKS)
    sources = {
        name: SourceEntry(
            [(file, int(size)) for file, size in entry["shards"]], entry["has_targets"]
        )
        for name, entry in values["sources"].items()
    }
    stages = [
        StageEntry(
            stage["name"],
            int(stage["sequence_length"]),
            [ShareEntry(**share) for share in stage["shares"]],
        )
        for stage in values["stages"]
    ]
    return BlocksTable(
        int(values["seed"]), values["separator"], int(values["largest_token"]), sources, stages
    )
