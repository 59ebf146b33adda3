"""Mixtures: which block comes at which position, as a pure function of (seed, stage, position).

Nothing is shuffled in memory and nothing is counted as training goes, so any number of processes
sees the same blocks, and a run resumed at any position finds its place at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.data.config import DataSection
from toolkit.errors import DataError

_UINT64 = (1 << 64) - 1


@dataclass(frozen=True)
class Share:
    """One source in one stage.

    Attributes:
        source: name of the source.
        num_blocks: different blocks it has.
        count: positions of the stage that go to it, repeats included.
    """

    source: str
    num_blocks: int
    count: int


def place(position: int, counts: Sequence[int]) -> tuple[int, int]:
    """Which source stands at a position, and how many of its blocks came before.

    Sources are spread evenly: every stretch of a stage has the stage's mixture, to within a block.

    >>> [place(p, [2, 4]) for p in range(6)]
    [(1, 0), (0, 0), (1, 1), (1, 2), (0, 1), (1, 3)]
    """
    positions_left = sum(counts)
    for source_number, count in enumerate(counts):
        blocks_before = _blocks_before(position, count, positions_left)
        if _blocks_before(position + 1, count, positions_left) > blocks_before:
            return source_number, blocks_before
        # It is another source's: those that are left share the positions that are left.
        position -= blocks_before
        positions_left -= count
    raise IndexError(f"position is beyond the stage's {sum(counts)}")


def taken(position: int, counts: Sequence[int]) -> list[int]:
    """How many blocks of each source stand before a position.

    >>> [taken(p, [2, 4]) for p in (0, 2, 6)]
    [[0, 0], [1, 1], [2, 4]]
    """
    positions_left, taken_blocks = sum(counts), []
    for count in counts:
        taken_here = _blocks_before(position, count, positions_left) if positions_left else 0
        taken_blocks.append(taken_here)
        position -= taken_here
        positions_left -= count
    return taken_blocks


def _blocks_before(position: int, count: int, total: int) -> int:
    """How many of a source's blocks stand before a position: its share of it, rounded."""
    # Whole numbers alone: all processes, and a resumed run, must come to the same place.
    return (position * count + total // 2) // total


def block_of(seed: int, stage: str, share: Share, number: int) -> int:
    """The `number`-th block that a stage takes from a source; each pass has an order of its own."""
    epoch, number_in_epoch = divmod(number, share.num_blocks)
    return permuted(number_in_epoch, share.num_blocks, (seed, stage, share.source, epoch))


def permuted(index: int, size: int, key: object) -> int:
    """Where a random permutation of `size` things sends `index`: computed, not stored.

    A Feistel network over the next power of four, walked until it lands inside.

    Reference:
        Black & Rogaway 2002, Ciphers with arbitrary finite domains.

    >>> sorted(permuted(i, 10, "key") for i in range(10)) == list(range(10))
    True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    round_keys = [int.from_bytes(digest[i : i + 8], "big") for i in (0, 8, 16, 24)]
    # Halves of one size make the range up to four times as large, so a walk takes four steps at
    # most on average.
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left_half, right_half = index >> half_bits, index & half_mask
        # A round can be undone whatever it mixes, so all rounds together are a permutation.
        for round_key in round_keys:
            mixed = ((right_half + round_key) * 0x9E3779B97F4A7C15) & _UINT64
            mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & _UINT64
            left_half, right_half = right_half, left_half ^ ((mixed >> 32) & half_mask)
        index = left_half << half_bits | right_half
        # The walk leaves the range for a while and comes back: at most one start leads to each end.
        if index < size:
            return index


def tokens_by_source(section: DataSection) -> dict[str, int | None]:
    """Tokens that each source must supply, where the recipe says so; None for all it has."""
    if not section.stages:
        return dict.fromkeys(section.sources)
    most_tokens: dict[str, float] = {}
    for stage in section.stages:
        total_share = sum(stage.mixture.values())
        for name, share in stage.mixture.items():
            # Stages may see the same text again, so the largest need of a stage is enough.
            stage_tokens = stage.tokens * share / total_share
            most_tokens[name] = max(most_tokens.get(name, 0.0), stage_tokens)
    return {name: int(most_tokens.get(name, 0.0)) + 1 for name in section.sources}


def plain_counts(
    section: DataSection, blocks: dict[str, int], targets: dict[str, int]
) -> dict[str, int]:
    """Positions of each source in one epoch without a curriculum.

    Args:
        section: sources and `replay_fraction`.
        blocks: number of blocks of each source.
        targets: number of targets of each source.

    Raises:
        DataError: the text of a general source would have to be repeated too often.
    """
    counts: dict[str, int] = {}
    domain_tokens = 0.0
    for name, source in section.sources.items():
        if source.role == "domain" and blocks.get(name):
            counts[name] = max(1, round(blocks[name] * (source.weight or 1.0)))
            domain_tokens += counts[name] * targets[name] / blocks[name]
    # The share of replay is one of all tokens, the domain's included.
    replay_tokens = domain_tokens * section.replay_fraction / (1.0 - section.replay_fraction)
    general_shares = _general_shares(section, targets)
    for name, share in general_shares.items():
        source_tokens = replay_tokens * share
        counts[name] = round(source_tokens * blocks[name] / targets[name])
        # What fits just so must not be refused because blocks are whole.
        if targets[name] * section.max_repeats < source_tokens * 0.999:
            raise DataError(
                f"data.replay_fraction: {section.replay_fraction} of the training tokens needs "
                f"{replay_tokens:,.0f} tokens of general text, {source_tokens:,.0f} of them from "
                f"{name}, which holds {targets[name]:,}, to be repeated {section.max_repeats:g} "
                "times at most; add general text, lower the fraction or the source's weight, or "
                "raise data.max_repeats."
            )
    if replay_tokens > 0 and not general_shares:
        raise DataError(
            f"data.replay_fraction: {section.replay_fraction} of the training tokens needs "
            f"{replay_tokens:,.0f} tokens of general text, but no general source has training "
            "text; add some, or set it to 0."
        )
    return {name: count for name, count in counts.items() if count}


def _general_shares(section: DataSection, targets: dict[str, int]) -> dict[str, float]:
    """The fraction of the replay that is of each general source with text: its weight; those
    without one share by size what the others' weights leave (`DataSection` sees that they do)."""
    general = {
        name: source.weight
        for name, source in section.sources.items()
        if source.role == "general" and targets.get(name)
    }
    total_weight = sum(weight for weight in general.values() if weight is not None)
    rest_tokens = sum(targets[name] for name, weight in general.items() if weight is None)
    if not rest_tokens:
        return {name: (weight or 0.0) / total_weight for name, weight in general.items()}
    return {
        name: targets[name] * (1.0 - total_weight) / rest_tokens if weight is None else weight
        for name, weight in general.items()
    }


def stage_counts(
    section: DataSection, number: int, blocks: dict[str, int], targets: dict[str, int]
) -> dict[str, int]:
    """Positions of each source in one stage of a curriculum.

    Raises:
        DataError: a source has no text, or would have to be repeated too often.
    """
    stage = section.stages[number]
    total_share = sum(stage.mixture.values())
    counts: dict[str, int] = {}
    for name, share in stage.mixture.items():
        if share == 0.0:
            continue
        tokens = stage.tokens * share / total_share
        if not blocks.get(name):
            raise DataError(
                f"data.stages.{number}.mixture.{name}: the source has no training text."
            )
        repeats = tokens / targets[name]
        if repeats > section.max_repeats * 1.001:
            raise DataError(
                f"data.stages.{number}.mixture.{name}: {tokens:,.0f} tokens would repeat its "
                f"{targets[name]:,} {repeats:.1f} times; lower the fraction, add text, or raise "
                f"data.max_repeats ({section.max_repeats:g})."
            )
        # A source that a stage names is seen, however small its share of it.
        counts[name] = max(1, round(tokens * blocks[name] / targets[name]))
    return counts
