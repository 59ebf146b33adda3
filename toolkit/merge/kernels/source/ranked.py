"""Kernels: which entries stay at random by their rank within a row (della), without sorting.

An entry stays when its number is below `low + spread * rank`. A histogram of the row bounds every
rank by those of its bin, which settles nearly all entries; the few between the bounds are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import TILE
from toolkit.merge.kernels.source.join import read_task_vector
from toolkit.merge.kernels.source.primitives import kernel, tile
from toolkit.merge.kernels.source.random import add_sizes, draw_into, pack

BINS = TILE
"""64 to the octave below the row's largest magnitude; the first holds zeros, the second also
whatever is smaller than the rest."""

_SHIFT = np.uint32(17)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


@kernel
def chance(twice_rank: int, n: int, low: Any, spread: Any) -> Any:
    """`low + spread * rank`, float32, rounded as the definition does it."""
    if n == 1:
        return low + spread * np.float32(0.5)
    return low + spread * (np.float32(twice_rank) / np.float32(2 * (n - 1)))


@kernel
def count_ranks(bits: Any, n: int, wanted: Any) -> Any:
    """How many magnitudes of the row are smaller, and how many not larger."""
    smaller, not_larger = np.int32(0), np.int32(0)
    for i in range(n):
        size = bits[i] & _MAGNITUDE
        smaller += np.int32(size < wanted)
        not_larger += np.int32(size <= wanted)
    return smaller, not_larger


@kernel
def fill_bins(bits: Any, n: int, bins: Any, counts: Any) -> Any:
    """Put every magnitude into its bin; returns the first bin in use (but for that of zeros)."""
    top = np.uint32(0)
    for i in range(n):
        top = max(top, bits[i] & _MAGNITUDE)
    offset = np.int32(top >> _SHIFT) - np.int32(BINS - 1)
    lowest = np.int32(BINS - 1)
    for i in range(n):
        size = bits[i] & _MAGNITUDE
        place = max(np.int32(size >> _SHIFT) - offset, np.int32(1))
        place = place if size > np.uint32(0) else np.int32(0)
        bins[i] = np.uint16(place)
        lowest = min(lowest, place if place > 0 else np.int32(BINS - 1))
    counts[0] = 0
    counts[lowest:] = 0
    for i in range(n):
        counts[bins[i]] += 1
    return lowest


@kernel
def flag_by_rank(x: Any, n: int, low: Any, spread: Any, scratch: Any, flags: Any) -> None:
    """Flag the entries of one row that stay.

    Args:
        x: the row, `[n]`, float32.
        n: its length.
        low: chance of the smallest entry, float32.
        spread: what the largest one's chance is above it.
        scratch: `[n]` each: numbers (drawn), bins, marks (rounded up to eights), two bounds; and by
            bin its count, the number below which an entry stays whatever its exact rank, and that
            from which on it does not.
        flags: `[n]`, uint8: the result, 0 or 1.
    """
    numbers, bins, marks, surely, likely, counts, surest, likeliest = scratch
    bits = x.view(np.uint32)
    lowest = fill_bins(bits, n, bins, counts)
    before = counts[0]
    surest[0] = likeliest[0] = chance(before - 1, n, low, spread)  # zeros tie
    for place in range(lowest, BINS):
        held = counts[place]
        surest[place] = chance(2 * before, n, low, spread)
        likeliest[place] = chance(2 * (before + held) - 2, n, low, spread)
        before += held
    # Bounds are gathered first: in one loop with the comparisons, LLVM makes branches of them, and
    # whether a random number is below its bound cannot be predicted (6 ns an entry).
    for i in range(n):
        surely[i] = surest[bins[i]]
    for i in range(n):
        likely[i] = likeliest[bins[i]]
    for i in range(n):
        flags[i] = np.uint8(numbers[i] < surely[i])
    for i in range(n):
        marks[i] = np.uint8((numbers[i] >= surely[i]) & (numbers[i] < likely[i]))
    eights = marks.view(np.uint64)
    for group in range(eights.size):
        if eights[group] == np.uint64(0):
            continue
        for i in range(8 * group, min(8 * group + 8, n)):
            place, number = bins[i], numbers[i]
            if marks[i] and number < surest[place]:  # settled since
                flags[i] = np.uint8(1)
            elif marks[i] and number < likeliest[place]:
                smaller, not_larger = count_ranks(bits, n, bits[i] & _MAGNITUDE)
                exact = chance(smaller + not_larger - 1, n, low, spread)
                flags[i] = np.uint8(number < exact)
                if not_larger - smaller == counts[place]:  # all of the bin tie: settled for all
                    surest[place] = likeliest[place] = exact


@kernel
def thin_by_rank(
    rows: Any, model: int, start: int, length: int, key: Any, density: Any, low: Any, spread: Any,
    room: Any, flags: Any, lanes: Any, mask: Any,
) -> int:  # fmt: skip
    """della: flag entries of a task vector by number and rank; see `random.thin_at_random`.

    Args:
        rows: tuned models and the base last, whole rows of `length` entries.
        model: which of them.
        start: place of the first entry in the tensor.
        length: of a row.
        key: of the model's stream, uint64.
        density: float32; at 1 all entries stay, at 0 none.
        low: chance of a row's smallest entry, float32.
        spread: what the largest one's chance is above it, float32.
        room: scratch, `[ROW_BYTES * (length + 8)]`, uint8.
        flags: scratch, `[8 * mask.size]`, uint8, zeros.
        lanes: magnitudes are added.
        mask: the result.
    """
    even = (length + 7) // 8 * 8
    x, base = room[: 4 * even].view(np.float32), room[4 * even : 8 * even].view(np.float32)
    numbers = room[8 * even : 12 * even].view(np.float32)
    surely = room[12 * even : 16 * even].view(np.float32)
    likely = room[16 * even : 20 * even].view(np.float32)
    bins, marks = room[20 * even : 22 * even].view(np.uint16), room[22 * even : 23 * even]
    words = room[23 * even : 27 * even + 8].view(np.uint64)
    marks[:] = np.uint8(0)
    counts, surest, likeliest = tile(np.int32), tile(np.float32), tile(np.float32)
    scratch = (numbers, bins, marks, surely, likely, counts, surest, likeliest)
    for at in range(0, rows[0].size, length):
        read_task_vector(rows, model, at, length, x, base)
        row = flags[at : at + length]
        if density >= np.float32(1.0):
            row[:] = np.uint8(1)
        elif density > np.float32(0.0):
            draw_into(key, start + at, length, words, numbers)
            flag_by_rank(x, length, low, spread, scratch, row)
        add_sizes(x, row, length, lanes)
    pack(flags, mask)
    return 0
