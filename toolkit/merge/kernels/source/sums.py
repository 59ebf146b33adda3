"""Kernels: weighted sums of models and of task vectors, and the inner products slerp needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import LANES, TILE
from toolkit.merge.kernels.source.primitives import decode, encode, fma, kernel, tile


@kernel
def combine_models(rows: Any, factors: Any, divisor: Any, divides: bool, out: Any) -> Any:
    """`sum(factor_m * x_m) / divisor`, each product and sum rounded once (fused).

    Args:
        rows: the models, `[n]` each.
        factors: `[M]`, float32.
        divisor: float32.
        divides: whether to divide at all.
        out: `[n]`.

    Returns:
        Bits of the largest magnitude among the inputs, to find NaN and infinity by.
    """
    x, total = tile(np.float32), tile(np.float32)
    top = np.uint32(0)
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        total[:n] = np.float32(0.0)
        for m in range(len(rows)):
            top = np.uint32(max(top, decode(rows[m][start : start + n], x.view(np.uint32))))
            factor = factors[m]
            for i in range(n):
                total[i] = fma(x[i], factor, total[i])
        if divides:
            for i in range(n):
                total[i] = total[i] / divisor
        encode(total.view(np.uint32), out[start : start + n])
    return top


@kernel
def arc(rows: Any, start_factor: Any, end_factor: Any, out: Any) -> Any:
    """`base * start + other * end`; the rows are the other model, then the base."""
    x, base = tile(np.float32), tile(np.float32)
    top = np.uint32(0)
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        top = np.uint32(max(top, decode(rows[0][start : start + n], x.view(np.uint32))))
        top = np.uint32(max(top, decode(rows[1][start : start + n], base.view(np.uint32))))
        for i in range(n):
            base[i] = fma(x[i], end_factor, base[i] * start_factor)
        encode(base.view(np.uint32), out[start : start + n])
    return top


@kernel
def inner_products(rows: Any, found: Any) -> int:
    """Add `x·x`, `y·y`, `x·y` to `found` (`[3]`, float64).

    `x` and `y` are the first two rows; where there is a third, it is the base, and they are task
    vectors. Each place of a tile has float64 sums of its own, so that the loop is a vector one, and
    the result the same on every machine.
    """
    x, y, base = tile(np.float32), tile(np.float32), tile(np.float32)
    xx, yy, xy = tile(np.float64), tile(np.float64), tile(np.float64)
    for i in range(LANES):
        xx[i] = yy[i] = xy[i] = 0.0
    for start in range(0, rows[0].size, LANES):
        n = min(LANES, rows[0].size - start)
        decode(rows[0][start : start + n], x.view(np.uint32))
        decode(rows[1][start : start + n], y.view(np.uint32))
        if len(rows) > 2:
            decode(rows[len(rows) - 1][start : start + n], base.view(np.uint32))
            for i in range(n):
                x[i] = x[i] - base[i]
                y[i] = y[i] - base[i]
        for i in range(n):
            a, b = np.float64(x[i]), np.float64(y[i])
            xx[i] += a * a
            yy[i] += b * b
            xy[i] += a * b
    for i in range(LANES):
        found[0] += xx[i]
        found[1] += yy[i]
        found[2] += xy[i]
    return 0


@kernel
def combine_task_vectors(rows: Any, factors: Any, out: Any) -> Any:
    """`sum(factor_m * (x_m - base)) + base`, each product and sum rounded once (fused)."""
    x, base = tile(np.float32), tile(np.float32)
    total = tile(np.float32)
    top = np.uint32(0)
    num_models = len(rows) - 1
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        top = np.uint32(max(top, decode(rows[num_models][start : start + n], base.view(np.uint32))))
        total[:n] = np.float32(0.0)
        for m in range(num_models):
            top = np.uint32(max(top, decode(rows[m][start : start + n], x.view(np.uint32))))
            factor = factors[m]
            for i in range(n):
                total[i] = fma(x[i] - base[i], factor, total[i])
        for i in range(n):
            total[i] = total[i] + base[i]
        encode(total.view(np.uint32), out[start : start + n])
    return top


@kernel
def add_task_vectors(
    rows: Any, factors: Any, divisor: Any, divides: bool, scale: Any, out: Any
) -> Any:
    """`base + scale * (sum(factor_m * (x_m - base)) / divisor)`, every step rounded."""
    x, base = tile(np.float32), tile(np.float32)
    total = tile(np.float32)
    top = np.uint32(0)
    num_models = len(rows) - 1
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        top = np.uint32(max(top, decode(rows[num_models][start : start + n], base.view(np.uint32))))
        total[:n] = np.float32(0.0)
        for m in range(num_models):
            top = np.uint32(max(top, decode(rows[m][start : start + n], x.view(np.uint32))))
            factor = factors[m]
            for i in range(n):
                total[i] = total[i] + (x[i] - base[i]) * factor
        if divides:
            for i in range(n):
                total[i] = total[i] / divisor
        for i in range(n):
            total[i] = total[i] * scale + base[i]
        encode(total.view(np.uint32), out[start : start + n])
    return top
