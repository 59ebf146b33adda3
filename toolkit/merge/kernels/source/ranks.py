"""Kernels: counts of a task vector's magnitudes, from which a magnitude of given rank follows.

The bits of non-negative floats are ordered as the floats are, so that counting by bits is counting
by size. NaN counts as larger than all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import TILE
from toolkit.merge.kernels.source.entries import (
    VECTOR,
    by_type,
    count_bits,
    cut,
    deltas,
    float_of,
    lowest_bit,
    masks,
    size_of,
    word,
)
from toolkit.merge.kernels.source.join import read_task_vector
from toolkit.merge.kernels.source.packing import collect
from toolkit.merge.kernels.source.primitives import cached_kernel, kernel, tile, tiles

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_16 = np.uint32(16)
_HALVINGS = 4
"""Of the interval that `kth_word` searches, before it drops what is not within."""


@cached_kernel
def upper_histogram(rows: Any, model: int, counts: Any) -> int:
    """Count `|x_m - base|` by the upper half of its bits into `counts` (`[65536]`)."""
    x, base = tile(np.float32), tile(np.float32)
    bits = x.view(np.uint32)
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        read_task_vector(rows, model, start, n, x, base)
        for i in range(n):
            counts[(bits[i] & _MAGNITUDE) >> _16] += 1
    return 0


@cached_kernel
def lower_histogram(rows: Any, model: int, upper: int, counts: Any) -> int:
    """Count the magnitudes with one upper half by their lower half into `counts` (`[65536]`)."""
    x, base = tile(np.float32), tile(np.float32)
    bits = x.view(np.uint32)
    least = np.uint32(upper) << _16
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        read_task_vector(rows, model, start, n, x, base)
        for i in range(n):
            bits[i] = bits[i] & _MAGNITUDE
        count_window(bits, n, least, np.uint32(1) << _16, counts)
    return 0


@cached_kernel
def collect_windows(
    rows: Any, models: Any, least: Any, widths: Any, below: Any, used: Any, room: Any
) -> int:
    """For several windows, count the magnitudes below each, and collect those within.

    Args:
        rows: tuned models and the base last, `[n]` each.
        models: of each window, `[W]`, int64.
        least: bits of the smallest magnitude within, `[W]`, uint32.
        widths: how many patterns are within, `[W]`, uint32.
        below: `[W]`, int64: added to.
        used: `[W]`, int64: how many are in `room` already; added to.
        room: `[W, ≥ n + 64]`, uint32: takes the bits of those within.
    """
    tuned, last = rows[:-1], rows[len(rows) - 1]
    sizes = tiles(len(rows) - 1, np.uint32)
    for start in range(0, last.size, TILE):
        n = min(TILE, last.size - start)
        some, bases = cut(tuned, start, start + n), last[start : start + n]
        for i in range(n):
            put_sizes(deltas(some, float_of(word(bases, i)), i), sizes, 0, i)
        for w in range(models.size):
            own = sizes[models[w]]
            # Masks look at 64 words at a time; beyond the end stands what no window holds.
            own[n:] = np.uint32(0xFFFFFFFF)
            smaller, held = below[w], used[w]
            for place in range(0, n, VECTOR):
                count, held = collect(own, place, least[w], widths[w], room[w], held)
                smaller += count
            below[w], used[w] = smaller, held
    return 0


@cached_kernel
def kth_word(words: Any, n: int, k: int, least: int, width: int) -> Any:
    """The `k`-th smallest, from 1, of `n` words, which are among the `width` ones from `least` on.

    By counting how many are below a limit, and keeping now and then what is between limits: unlike
    partitioning this takes no longer where many are equal.

    Args:
        words: `[≥ n + 64]`, uint32; written over.
        n: how many there are.
        k: from 1 to `n`.
        least: the smallest that they may be.
        width: how many they may be.
    """
    low, high = least, least + width
    while high - low > 1:
        words[n : n + VECTOR] = np.uint32(0xFFFFFFFF)
        for _ in range(_HALVINGS):
            middle = (low + high) // 2
            if middle > low:
                below = 0
                for place in range(0, n, VECTOR):
                    smaller, _ = masks(words, place, np.uint32(middle), np.uint32(0))
                    below += count_bits(smaller)
                if k <= below:
                    high = middle
                else:
                    low = middle
        below, held = 0, 0
        for place in range(0, n, VECTOR):
            # In place: what is kept never overtakes what is read.
            first, between = np.uint32(low), np.uint32(high - low)
            count, held = collect(words, place, first, between, words, held)
            below += count
        n, k = held, k - below
    return np.uint32(low)


def put_sizes(values: Any, sizes: Any, m: Any, i: Any) -> None:
    """The bits of the magnitudes of a tuple of float32 into column `i`, from row `m` on."""
    raise NotImplementedError


@by_type(put_sizes)
def _put_sizes(values: Any, sizes: Any, m: Any, i: Any) -> Any:  # noqa: ARG001
    def last(values: Any, sizes: Any, m: Any, i: Any) -> None:
        sizes[m, i] = size_of(values[0])

    def more(values: Any, sizes: Any, m: Any, i: Any) -> None:
        sizes[m, i] = size_of(values[0])
        put_sizes(values[1:], sizes, m + 1, i)

    return last if len(values) == 1 else more


@kernel
def count_window(sizes: Any, n: int, least: Any, width: Any, counts: Any) -> Any:
    """Count the first `n` of a tile's magnitudes within a window by their place in it.

    Mostly few entries are in it, so that only those are touched one by one.

    Returns:
        How many are below the window.
    """
    below = 0
    sizes[n:] = np.uint32(0xFFFFFFFF)
    for place in range(0, n, VECTOR):
        smaller, within = masks(sizes, place, least, width)
        below += count_bits(smaller)
        while within != np.uint64(0):
            counts[np.int64(sizes[place + lowest_bit(within)]) - np.int64(least)] += np.uint32(1)
            within &= within - np.uint64(1)
    return below
