"""Kernel: squared norms and distances of models, and how the signs of task vectors agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import NON_FINITE, TILE
from toolkit.merge.kernels.source.primitives import cached_kernel, decode, kernel, tile, tiles

_LANES = 8
"""Sums that run side by side, so that none waits for the last addition; their order is fixed."""

_MAGNITUDE, _FIRST_NON_FINITE = np.uint32(0x7FFFFFFF), np.uint32(NON_FINITE)


@cached_kernel
def compare_models(
    rows: Any, base: int, squares: Any, gaps: Any, both: Any, same: Any, non_finite: Any
) -> int:
    """Sum over the entries of a block, in float64 of float32 entries.

    Args:
        rows: of every model, `[n]` each.
        base: index of the base model.
        squares: takes squared norms, `[V]`.
        gaps: takes squared distances, `[V, V]`.
        both: takes counts of entries in which two models differ from the base, `[V, V]`.
        same: takes counts of those in which they do so in the same direction, `[V, V]`.
        non_finite: takes counts of entries that are NaN or infinite, `[V]`.
    """
    num_models = len(rows)
    values, signs = tiles(num_models, np.float32), tiles(num_models, np.int8)
    lanes = tile(np.float64)
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        for m in range(num_models):
            # Beyond the end all models are 0: equal, so nothing is added there.
            values[m, n:] = np.float32(0.0)
            bits = values[m].view(np.uint32)
            if decode(rows[m][start : start + n], bits[:n]) >= _FIRST_NON_FINITE:
                for i in range(n):
                    non_finite[m] += (bits[i] & _MAGNITUDE) >= _FIRST_NON_FINITE
        for m in range(num_models):
            # A float32 difference is zero only of equal numbers, so its sign is exact.
            for i in range(TILE):
                difference = values[m, i] - values[base, i]
                signs[m, i] = np.int8(difference > 0) - np.int8(difference < 0)
            squares[m] += _squared_norm(values[m], lanes)
        for a in range(num_models):
            for b in range(a + 1, num_models):
                gaps[a, b] += _squared_distance(values[a], values[b], lanes)
                if a == base or b == base:
                    continue
                agree = 0
                differ = 0
                for i in range(TILE):
                    product = signs[a, i] * signs[b, i]
                    agree += product > 0
                    differ += product < 0
                both[a, b] += agree + differ
                same[a, b] += agree
    return 0


@kernel
def _squared_norm(x: Any, lanes: Any) -> Any:
    lanes[:_LANES] = 0.0
    for i in range(0, TILE, _LANES):
        for lane in range(_LANES):
            value = np.float64(x[i + lane])
            lanes[lane] += value * value
    return _total(lanes)


@kernel
def _squared_distance(x: Any, y: Any, lanes: Any) -> Any:
    lanes[:_LANES] = 0.0
    for i in range(0, TILE, _LANES):
        for lane in range(_LANES):
            value = np.float64(x[i + lane]) - np.float64(y[i + lane])
            lanes[lane] += value * value
    return _total(lanes)


@kernel
def _total(lanes: Any) -> Any:
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    return total
