"""Kernel: squared norms and distances of models, and how the signs of task vectors agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.primitives import TILE, decode, kernel

_LANES = 8
"""Sums that run side by side, so that none waits for the last addition; their order is fixed."""


@kernel
def compare(
    rows: Any, base: int, squares: Any, gaps: Any, both: Any, same: Any, non_finite: Any
) -> None:
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
    values = np.empty((num_models, TILE), np.float32)
    signs = np.empty((num_models, TILE), np.int8)
    lanes = np.empty(_LANES, np.float64)
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        for m in range(num_models):
            values[m, n:] = np.float32(0.0)
            bits = values[m].view(np.uint32)
            if decode(rows[m][start : start + n], bits[:n]) >= np.uint32(0x7F800000):
                for i in range(n):
                    non_finite[m] += (bits[i] & np.uint32(0x7FFFFFFF)) >= np.uint32(0x7F800000)
        for m in range(num_models):
            # A float32 difference is zero only of equal numbers, so its sign is exact.
            for i in range(TILE):
                difference = values[m, i] - values[base, i]
                signs[m, i] = np.int8(difference > 0) - np.int8(difference < 0)
            lanes[:] = 0.0
            for i in range(0, TILE, _LANES):
                for lane in range(_LANES):
                    x = np.float64(values[m, i + lane])
                    lanes[lane] += x * x
            squares[m] += lanes.sum()
        for a in range(num_models):
            for b in range(a + 1, num_models):
                lanes[:] = 0.0
                for i in range(0, TILE, _LANES):
                    for lane in range(_LANES):
                        x = np.float64(values[a, i + lane]) - np.float64(values[b, i + lane])
                        lanes[lane] += x * x
                gaps[a, b] += lanes.sum()
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
