"""Kernels: which entries stay at random by their rank within a row (della), without sorting.

An entry stays when its number is below `low + spread * rank`. Most numbers are below that whatever
the rank, or above it. For the others a histogram of the row bounds every rank by those of its bin,
which settles nearly all of them; the few between the bounds are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import LANES, TILE
from toolkit.merge.kernels.source.entries import (
    VECTOR,
    count_bits,
    float_of,
    keep,
    larger_size,
    lowest_bit,
    masks,
    running_sums,
    size_of,
    word,
)
from toolkit.merge.kernels.source.packing import pack, unpack
from toolkit.merge.kernels.source.primitives import cached_kernel, kernel, tile
from toolkit.merge.kernels.source.random import draw_into, limit_of

BINS = TILE
"""256 to the octave below the row's largest magnitude; the first 16 hold zeros, the 17th also
what is smaller than the rest."""

ZEROS = 16
"""Bins that hold zeros."""

# What is left are eight bits of exponent and eight of fraction: 256 bins to the octave.
_SHIFT = np.uint32(15)
_ONE, _ANY_ONE = np.uint64(1), np.uint64(0x0101010101010101)
_STEP = np.float32(2.0**-24)


@kernel
def chance(twice_rank: int, n: int, low: Any, spread: Any) -> Any:
    """`low + spread * rank`, float32, rounded as the definition does it."""
    if n == 1:
        return low + spread * np.float32(0.5)
    return low + spread * (np.float32(twice_rank) / np.float32(2 * (n - 1)))


@kernel
def count_ranks(sizes: Any, n: int, wanted: Any) -> Any:
    """How many magnitudes of the row are smaller, and how many the same."""
    smaller, same = 0, 0
    for place in range(0, n, VECTOR):
        below, equal = masks(sizes, place, wanted, np.uint32(1))
        smaller += count_bits(below)
        same += count_bits(equal)
    return smaller, same


@kernel
def fill_bins(sizes: Any, n: int, top: Any, bins: Any, counts: Any) -> Any:
    """Put every magnitude into its bin; zeros, of which there may be many, into the first sixteen
    in turn, as a count that is added to again at once makes the processor wait.

    Returns:
        How many zeros there are.
    """
    # The row's largest magnitude falls into the last bin.
    offset = np.int32(top >> _SHIFT) - np.int32(BINS - 1)
    for i in range(n):
        size = sizes[i]
        place = max(np.int32(size >> _SHIFT) - offset, np.int32(ZEROS))
        bins[i] = np.uint32(place if size > np.uint32(0) else np.int32(i) & np.int32(ZEROS - 1))
    counts[:] = 0
    for i in range(n):
        counts[bins[i]] += np.int32(1)
    return counts[:ZEROS].sum()


@kernel
def flag_by_rank(sizes: Any, n: int, top: Any, low: Any, spread: Any, halves: Any, scratch: Any,
                 stay: Any) -> None:  # fmt: skip
    """Flag the entries of one row that stay.

    Args:
        sizes: bits of the row's magnitudes, `[64 ⌈n / 64⌉]`, uint32, larger than all where the row
            has ended.
        n: its length.
        top: the largest of them.
        low: chance of the smallest entry, float32.
        spread: what the largest one's chance is above it.
        halves: the entries' numbers, see `draw_into`.
        scratch: by entry its bin; by undecided entry its number, its bin, its size, two bounds of
            its rank and then of its chance, and whether it stays; by 64 entries, which of them are
            undecided; by bin its count, what comes before it, and, where all of it tie, their
            chance.
        stay: `[⌈n / 64⌉]`, uint64: the result, a bit an entry.
    """
    bins, numbers, owns, mine, least, most, state, doubts, counts, firsts, settled = scratch
    # Below the chance of rank 0 an entry stays whatever its rank, above that of the last it goes.
    surely = limit_of(low)
    width = limit_of(low + spread) - surely  # a limit of 2^32 is 0, and the difference still right
    num_zeros = np.int32(0)
    if width > 0:  # else no entry depends on its rank
        num_zeros = np.int32(fill_bins(sizes, n, top, bins, counts))
        before = num_zeros
        for at in range(ZEROS, BINS, 16):
            before = running_sums(counts, firsts, at, before)
    # Undecided entries are packed to the front: what follows takes as long as they are many.
    found = 0
    for place in range(0, n, VECTOR):
        stays, may_stay = masks(halves, place, surely, np.uint32(width))
        if place + VECTOR > n:
            may_stay &= (_ONE << np.uint64(n - place)) - _ONE
        stay[place // VECTOR] = stays
        doubts[place // VECTOR] = may_stay
        pack(halves, place, may_stay, numbers, found)
        pack(sizes, place, may_stay, mine, found)
        found = pack(bins, place, may_stay, owns, found)
    # A rank lies between those of its bin's ends. Ranks are doubled, as ties have half ones.
    zeros = num_zeros - np.int32(1)
    for j in range(found):
        own = owns[j]
        first, held = firsts[own], counts[own]
        is_zero = own < np.uint32(ZEROS)
        least[j] = zeros if is_zero else np.int32(2) * first
        most[j] = zeros if is_zero else np.int32(2) * (first + held) - np.int32(2)
    low_bounds, high_bounds = least.view(np.float32), most.view(np.float32)
    for j in range(found):
        low_bounds[j] = chance(least[j], n, low, spread)
        high_bounds[j] = chance(most[j], n, low, spread)
    for j in range(found):
        number = number_of(numbers[j])
        state[j] = np.uint8(number < low_bounds[j]) + np.uint8(number < high_bounds[j])
    # States of both bounds are equal but for a few entries: eight are looked at in one word.
    eights = state.view(np.uint64)
    state[found : (found + 7) // 8 * 8] = np.uint8(0)
    for group in range((found + 7) // 8):
        # A state of 1 is in doubt, of 2 stays; after this 0 goes, and all else stays.
        unsure = eights[group] & _ANY_ONE
        while unsure != np.uint64(0):
            j = 8 * group + lowest_bit(unsure) // 8
            unsure &= unsure - _ONE
            own = np.int64(owns[j])
            if counts[own] >= 0:
                smaller, same = count_ranks(sizes, n, mine[j])
                settled[own] = chance(2 * smaller + same - 1, n, low, spread)
                if same == counts[own]:  # all of the bin tie: settled for all
                    counts[own] = -1
            state[j] = np.uint8(number_of(numbers[j]) < settled[own])
    taken = 0
    for group in range((n + VECTOR - 1) // VECTOR):
        stay[group] |= unpack(state, taken, doubts[group])
        taken += count_bits(doubts[group])


@kernel
def number_of(half: Any) -> Any:
    """The number that half a word stands for, float32."""
    return np.float32(np.int32(half >> np.uint32(8))) * _STEP


@kernel
def read_sizes(x: Any, base: Any, sizes: Any) -> Any:
    """Bits of `|x - base|` into `sizes`, and larger ones behind them; returns the largest."""
    sizes[x.size :] = np.uint32(0xFFFFFFFF)
    top = np.uint32(0)
    for i in range(x.size):
        size = size_of(float_of(word(x, i)) - float_of(word(base, i)))
        sizes[i] = size
        top = larger_size(top, size)
    return top


@kernel
def add_both(sizes: Any, kept: Any, n: int, lanes: Any) -> None:
    """Add both to `lanes` (`[2, LANES]`, float64); see `random.add_sizes`.

    Up to four parts of a row for each time that a sum is read and written; each sum's order stays.
    """
    before, after = lanes[0], lanes[1]
    start = 0
    while start + 3 * LANES <= n:
        add_three(sizes[start : start + 3 * LANES], before)
        add_three(kept[start : start + 3 * LANES], after)
        start += 3 * LANES
    while start < n:
        stop = min(start + LANES, n)
        add_one(sizes[start:stop], before)
        add_one(kept[start:stop], after)
        start = stop


@kernel
def add_three(x: Any, sums: Any) -> None:
    a, b, c = x[:LANES], x[LANES : 2 * LANES], x[2 * LANES :]
    for i in range(LANES):
        sums[i] = sums[i] + np.float64(a[i]) + np.float64(b[i]) + np.float64(c[i])


@kernel
def add_one(x: Any, sums: Any) -> None:
    for i in range(x.size):
        sums[i] += np.float64(x[i])


@kernel
def put_bits(bits: Any, n: int, mask: Any, at: int) -> None:
    """`n` bits into `mask`, from bit `at` on, where zeros stand."""
    for place in range(0, n, VECTOR):
        count = min(VECTOR, n - place)
        found = bits[place // VECTOR]
        if count < VECTOR:
            found &= (_ONE << np.uint64(count)) - _ONE
        into, shift = (at + place) // VECTOR, (at + place) % VECTOR
        mask[into] |= found << np.uint64(shift)
        if shift + count > VECTOR:
            mask[into + 1] |= found >> np.uint64(VECTOR - shift)


@cached_kernel
def thin_by_rank(
    rows: Any, model: int, start: int, length: int, key: Any, density: Any, low: Any, spread: Any,
    room: Any, lanes: Any, mask: Any,
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
        room: scratch, `[ROW_BYTES * (length + ROW_SLACK)]`, uint8.
        lanes: magnitudes are added.
        mask: `[8 ⌈n / 64⌉]`, uint8: the result.
    """
    even = (length + VECTOR - 1) // VECTOR * VECTOR
    wide = even + VECTOR  # what is packed is followed by what is written over
    # Views of one piece of scratch. All lengths are multiples of 64, so that each view of 8-byte
    # words is aligned.
    sizes = room[: 4 * even].view(np.uint32)
    bins = room[4 * even : 8 * even].view(np.uint32)
    numbers = room[8 * even : 8 * even + 4 * wide].view(np.uint32)
    owns = room[8 * even + 4 * wide : 8 * even + 8 * wide].view(np.uint32)
    mine = room[8 * even + 8 * wide : 8 * even + 12 * wide].view(np.uint32)
    least = room[8 * even + 12 * wide : 12 * even + 12 * wide].view(np.int32)
    most = room[12 * even + 12 * wide : 16 * even + 12 * wide].view(np.int32)
    rest = room[16 * even + 12 * wide :]
    state = rest[:wide]
    bits, doubts = rest[wide:][: even // 8], rest[wide:][even // 8 : even // 4]
    words = rest[2 * wide : 6 * wide + 8 * VECTOR].view(np.uint64)
    stay = bits.view(np.uint64)
    counts, firsts, settled = tile(np.int32), tile(np.int32), tile(np.float32)
    scratch = (
        bins, numbers, owns, mine, least, most, state, doubts.view(np.uint64), counts, firsts,
        settled,
    )  # fmt: skip
    kept = mask.view(np.uint64)
    kept[:] = np.uint64(0)
    x, last = rows[model], rows[len(rows) - 1]
    for at in range(0, x.size, length):
        # Row by row, as ranks are taken within a row; mask and numbers go on through the tensor.
        top = read_sizes(x[at : at + length], last[at : at + length], sizes)
        if density >= np.float32(1.0) or density <= np.float32(0.0):
            bits[:] = np.uint8(255 if density >= np.float32(1.0) else 0)
        else:
            halves = draw_into(key, start + at, length, words)
            flag_by_rank(sizes, length, top, low, spread, halves, scratch, stay)
        for place in range(0, length, VECTOR):
            keep(sizes, place, stay[place // VECTOR], bins)  # nobody asks for bins any more
        add_both(sizes.view(np.float32), bins.view(np.float32), length, lanes)
        put_bits(stay, length, kept, at)
    return 0
