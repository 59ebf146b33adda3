"""Kernels: counts of a task vector's magnitudes, from which a magnitude of given rank follows.

The bits of non-negative floats are ordered as the floats are, so that counting by bits is counting
by size. NaN counts as larger than all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import TILE
from toolkit.merge.kernels.source.join import read_task_vector, subtract
from toolkit.merge.kernels.source.primitives import decode, kernel, tile

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_16 = np.uint32(16)


@kernel
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


@kernel
def lower_histogram(rows: Any, model: int, upper: int, counts: Any) -> int:
    """Count the magnitudes with one upper half by their lower half into `counts` (`[65536]`)."""
    x, base = tile(np.float32), tile(np.float32)
    bits = x.view(np.uint32)
    marks = tile(np.uint8)
    least = np.uint32(upper) << _16
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        read_task_vector(rows, model, start, n, x, base)
        count_window(bits, n, least, np.uint32(1) << _16, marks, counts)
    return 0


@kernel
def window_histogram(
    rows: Any, models: Any, least: Any, widths: Any, offsets: Any, below: Any, counts: Any
) -> int:
    """Count, for several windows, the magnitudes below each, and those within by their bits.

    Args:
        rows: tuned models and the base last, `[n]` each.
        models: of each window, `[W]`, int64.
        least: bits of the smallest magnitude within, `[W]`, uint32.
        widths: how many patterns are within, `[W]`, uint32.
        offsets: where a window's counts begin, `[W]`, int64.
        below: `[W]`, int64: added to.
        counts: uint32: added to.
    """
    x, base = tile(np.float32), tile(np.float32)
    bits = x.view(np.uint32)
    last = len(rows) - 1
    marks = tile(np.uint8)
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        decode(rows[last][start : start + n], base.view(np.uint32))
        for w in range(models.size):
            if w == 0 or models[w] != models[w - 1]:
                decode(rows[models[w]][start : start + n], bits)
                subtract(x, base, n)
            smaller = np.int32(0)
            first = least[w]
            for i in range(n):
                smaller = np.int32(smaller + np.int32((bits[i] & _MAGNITUDE) < first))
            below[w] += smaller
            own = counts[offsets[w] : offsets[w] + np.int64(widths[w])]
            count_window(bits, n, first, widths[w], marks, own)
    return 0


@kernel
def count_window(bits: Any, n: int, least: Any, width: Any, marks: Any, counts: Any) -> None:
    """Count a tile's magnitudes within a window by their place in it.

    Mostly few entries are in it, so most groups of eight are passed over at once.
    """
    eights = marks.view(np.uint64)
    if n < TILE:
        marks[:] = np.uint8(0)
    for i in range(n):
        marks[i] = np.uint8(np.uint32((bits[i] & _MAGNITUDE) - least) < width)
    for group in range((n + 7) // 8):
        if eights[group]:
            for i in range(8 * group, 8 * group + 8):
                if marks[i]:
                    counts[(bits[i] & _MAGNITUDE) - least] += 1
