"""Kernels: task vectors trimmed by magnitude, with or without a vote on signs.

Thresholds are exact and come from a histogram in two levels: the upper 16 bits of the magnitude's
float32 pattern say which bin the wanted rank is in, the lower 16 bits of the entries in that bin
say which value. Patterns of non-negative floats are ordered as the floats are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.join import subtract, unite
from toolkit.merge.kernels.primitives import TILE, decode, kernel
from toolkit.merge.kernels.random import add_sizes

BINS = 1 << 16


@kernel
def coarse_histogram(rows: Any, model: int, counts: Any) -> None:
    """Count `|x_m - base|` by the upper 16 bits of its pattern into `counts` (`[65536]`)."""
    x, base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    bits = x.view(np.uint32)
    last = len(rows) - 1
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        decode(rows[model][start : start + n], bits)
        decode(rows[last][start : start + n], base.view(np.uint32))
        for i in range(n):
            x[i] = x[i] - base[i]
        for i in range(n):
            counts[(bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)] += 1


@kernel
def fine_histogram(rows: Any, model: int, bin_index: int, counts: Any) -> None:
    """Count the magnitudes in one coarse bin by their lower 16 bits into `counts` (`[65536]`).

    Mostly few entries are in it, so most groups of eight are passed over at once.
    """
    x, base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    bits = x.view(np.uint32)
    last = len(rows) - 1
    marks = np.empty(TILE, np.uint8)
    eights = marks.view(np.uint64)
    wanted = np.uint32(bin_index)
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        decode(rows[model][start : start + n], bits)
        decode(rows[last][start : start + n], base.view(np.uint32))
        for i in range(n):
            x[i] = x[i] - base[i]
        marks[:] = np.uint8(0)
        for i in range(n):
            marks[i] = np.uint8(((bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)) == wanted)
        for group in range((n + 7) // 8):
            if eights[group]:
                for i in range(8 * group, 8 * group + 8):
                    if marks[i]:
                        counts[bits[i] & np.uint32(0xFFFF)] += 1


@kernel
def join_trimmed(
    rows: Any, factors: Any, ratios: Any, low: Any, high: Any, votes: bool, divisor: Any,
    divides: bool, scale: Any, out: Any,
) -> Any:  # fmt: skip
    """TIES and breadcrumbs: task vectors without their small (and large) entries, united.

    Args:
        rows: tuned models and the base last, `[n]` each.
        factors: `[M]`, float32.
        ratios: `[M]`, float32: what rescaling multiplies by.
        low: `[M]`, float32: smaller magnitudes count as zero.
        high: `[M]`, float32: and so do larger ones.
        votes: and what follows: see `unite`.
        divisor: float32.
        divides: whether to divide.
        scale: float32.
        out: `[n]`.

    Returns:
        Bits of the largest magnitude among the inputs.
    """
    num_models = len(rows) - 1
    weighted = np.empty((num_models, TILE), np.float32)
    x, base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    scratch = np.empty((3, TILE), np.float32)
    top = np.uint32(0)
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        top = max(top, decode(rows[num_models][start : start + n], base.view(np.uint32)))
        for m in range(num_models):
            top = max(top, decode(rows[m][start : start + n], x.view(np.uint32)))
            row, least, most, ratio, factor = weighted[m], low[m], high[m], ratios[m], factors[m]
            for i in range(n):
                delta = x[i] - base[i]
                size = abs(delta)
                kept = delta if (size >= least) & (size <= most) else np.float32(0.0)
                row[i] = kept * ratio * factor
        unite(
            weighted, n, factors, votes, divisor, divides, scale, base, scratch,
            out[start : start + n],
        )  # fmt: skip
    return top


@kernel
def sizes_trimmed(rows: Any, model: int, least: Any, most: Any, lanes: Any) -> None:
    """Add the magnitudes of a task vector, and of what trimming leaves, to `lanes`."""
    x, base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    flags = np.empty(TILE, np.uint8)
    last = len(rows) - 1
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        decode(rows[model][start : start + n], x.view(np.uint32))
        decode(rows[last][start : start + n], base.view(np.uint32))
        subtract(x, base, n)
        for i in range(n):
            flags[i] = np.uint8((abs(x[i]) >= least) & (abs(x[i]) <= most))
        add_sizes(x, flags, n, lanes)
