"""Kernel: all magnitudes of a task vector in order, as distinct values with their counts.

Models stored in 16 bits have few distinct differences, so the table is small, and any rank is a
look-up in it. It costs a sort by counting; searches, which ask many densities of the same tensors,
build it, single merges do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import TILE
from toolkit.merge.kernels.source.join import read_task_vector
from toolkit.merge.kernels.source.primitives import cached_kernel, tile

_HALF, _MAGNITUDE = np.uint32(0xFFFF), np.uint32(0x7FFFFFFF)
_16, _6, _63, _1 = np.uint32(16), np.uint32(6), np.uint32(63), np.uint64(1)


@cached_kernel
def scatter_halves(rows: Any, model: int, starts: Any, halves: Any) -> int:
    """Lower pattern halves of all magnitudes, ordered by the upper ones.

    Args:
        rows: tuned models and the base last, `[n]` each.
        model: which of them.
        starts: `[65536]`: where the entries of each upper half begin; moved to where they end.
        halves: `[n]`, uint16: the result.
    """
    x, base = tile(np.float32), tile(np.float32)
    bits = x.view(np.uint32)
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        read_task_vector(rows, model, start, n, x, base)
        for i in range(n):
            size = bits[i] & _MAGNITUDE
            upper = size >> _16
            halves[starts[upper]] = np.uint16(size & _HALF)
            starts[upper] += 1
    return 0


@cached_kernel
def distinct(halves: Any, ends: Any, counts: Any, used: Any, patterns: Any, cumulative: Any) -> int:
    """Distinct magnitudes in order, and how many are not larger than each.

    Args:
        halves: from `scatter_halves`.
        ends: `[65536]`: where the entries of each upper half end.
        counts: `[65536]`, uint32, zeros: scratch.
        used: `[1024]`, uint64, zeros: scratch.
        patterns: `[D]`, uint32: the result, bits of the magnitudes.
        cumulative: `[D]`, uint32: the result.

    Returns:
        How many there are; D + 1 when more than D.
    """
    found, begin = 0, 0
    for upper in range(ends.size):
        end = ends[upper]
        if end == begin:
            continue
        for i in range(begin, end):
            half = np.uint32(halves[i])
            counts[half] += np.uint32(1)
            # A bit for each half that occurs: only those are visited, and cleared for the next
            # upper half, instead of all 65536 each time.
            used[half >> _6] |= _1 << np.uint64(half & _63)
        before = np.uint32(begin)
        for word in range(used.size):
            rest = used[word]
            if rest == np.uint64(0):
                continue
            for bit in range(64):
                if (rest >> np.uint64(bit)) & _1:
                    half = np.uint32(64 * word + bit)
                    if found == patterns.size:
                        return found + 1
                    before += counts[half]
                    patterns[found] = (np.uint32(upper) << _16) | half
                    cumulative[found] = before
                    counts[half] = np.uint32(0)
                    found += 1
            used[word] = np.uint64(0)
        begin = end
    return found
