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


@dataclass(frozen=True)
class Share:
    """One source in one stage.

    Attributes:
        source: its name.
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
    left = sum(counts)
    for number, count in enumerate(counts):
        before = _before(position, count, left)
        if _before(position + 1, count, left) > before:
            return number, before
        position -= before
        left -= count
    raise IndexError(f"position is beyond the stage's {sum(counts)}")


def taken(position: int, counts: Sequence[int]) -> list[int]:
    """How many blocks of each source stand before a position.

    >>> [taken(p, [2, 4]) for p in (0, 2, 6)]
    [[0, 0], [1, 1], [2, 4]]
    """
    left, used = sum(counts), []
    for count in counts:
        used.append(_before(position, count, left) if left else 0)
        position -= used[-1]
        left -= count
    return used


def _before(position: int, count: int, total: int) -> int:
    return (position * count + total // 2) // total


def block_of(seed: int, stage: str, share: Share, number: int) -> int:
    """The `number`-th block that a stage takes from a source; each pass has an order of its own."""
    epoch, rest = divmod(number, share.num_blocks)
    return permuted(rest, share.num_blocks, (seed, stage, share.source, epoch))


def permuted(index: int, size: int, key: object) -> int:
    """Where a random permutation of `size` things sends `index`: computed, not stored.

    A Feistel network over the next power of four, walked until it lands inside.

    Reference:
        Black & Rogaway 2002, Ciphers with arbitrary finite domains.

    >>> sorted(permuted(i, 10, "key") for i in range(10)) == list(range(10))
    True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    keys = [int.from_bytes(digest[i : i + 8], "big") for i in (0, 8, 16, 24)]
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in keys:
            mixed = ((right + number) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & mask)
        index = left << half | right
        if index < size:
            return index


def wanted_tokens(section: DataSection) -> dict[str, int | None]:
    """Tokens that each source must supply, where the recipe says so; None for all it has."""
    if not section.stages:
        return dict.fromkeys(section.sources)
    wanted: dict[str, float] = {}
    for stage in section.stages:
        total = sum(stage.mixture.values())
        for name, share in stage.mixture.items():
            wanted[name] = max(wanted.get(name, 0.0), stage.tokens * share / total)
    return {name: int(wanted.get(name, 0.0)) + 1 for name in section.sources}


def plain_counts(
    section: DataSection, blocks: dict[str, int], targets: dict[str, int]
) -> dict[str, int]:
    """Positions of each source in one epoch without a curriculum.

    Args:
        section: with sources and `replay_fraction`.
        blocks: of each source.
        targets: of each source.

    Raises:
        DataError: general text would have to be repeated too often.
    """
    counts: dict[str, int] = {}
    domain_tokens = 0.0
    for name, source in section.sources.items():
        if source.role == "domain" and blocks.get(name):
            counts[name] = max(1, round(blocks[name] * (source.weight or 1.0)))
            domain_tokens += counts[name] * targets[name] / blocks[name]
    need = domain_tokens * section.replay_fraction / (1.0 - section.replay_fraction)
    general = {n: s for n, s in section.sources.items() if s.role == "general" and blocks.get(n)}
    weights = {name: float(source.weight or targets[name]) for name, source in general.items()}
    for name, weight in weights.items():
        tokens = need * weight / sum(weights.values())
        counts[name] = round(tokens * blocks[name] / targets[name])
    available = sum(targets[name] for name in general)
    if need > 0 and available * section.max_repeats < need * 0.999:
        raise DataError(
            f"data.replay_fraction: {section.replay_fraction} of the training tokens needs "
            f"{need:,.0f} tokens of general text, but the sources hold {available:,}, to be "
            f"repeated {section.max_repeats:g} times at most; add a general source, lower the "
            "share, or raise data.max_repeats."
        )
    return {name: count for name, count in counts.items() if count}


def stage_counts(
    section: DataSection, number: int, blocks: dict[str, int], targets: dict[str, int]
) -> dict[str, int]:
    """Positions of each source in one stage of a curriculum.

    Raises:
        DataError: a source has no text, or would have to be repeated too often.
    """
    stage = section.stages[number]
    total = sum(stage.mixture.values())
    counts: dict[str, int] = {}
    for name, share in stage.mixture.items():
        if share == 0.0:
            continue
        tokens = stage.tokens * share / total
        if not blocks.get(name):
            raise DataError(
                f"data.stages.{number}.mixture.{name}: the source has no training text."
            )
        repeats = tokens / targets[name]
        if repeats > section.max_repeats * 1.001:
            raise DataError(
                f"data.stages.{number}.mixture.{name}: {tokens:,.0f} tokens would repeat its "
                f"{targets[name]:,} {repeats:.1f} times; lower the share, add text, or raise "
                f"data.max_repeats ({section.max_repeats:g})."
            )
        counts[name] = max(1, round(tokens * blocks[name] / targets[name]))
    return counts
