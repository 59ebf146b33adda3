"""Kernels: weighted sums of models and of task vectors, and the inner products slerp needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import LANES
from toolkit.merge.kernels.source.entries import (
    by_type,
    cut,
    deltas,
    divided,
    float_of,
    fused_sum,
    larger,
    plain_sum,
    products,
    put,
    scalars,
    word,
)
from toolkit.merge.kernels.source.primitives import cached_kernel, fma, tile


@cached_kernel
def combine_models(rows: Any, factors: Any, divisor: Any, out: Any) -> Any:
    """`sum(factor_m * x_m) / divisor`, each product and sum rounded once (fused).

    Args:
        rows: the models, `[n]` each.
        factors: `[M]`, float32.
        divisor: float32, or None to leave the sum as it is.
        out: `[n]`.

    Returns:
        Bits of the largest magnitude among the inputs, to find NaN and infinity by.
    """
    by = scalars(rows, factors, 0)
    top = np.uint32(0)
    for i in range(out.size):
        # Less 0.0, which changes no number: the models' own entries as a tuple.
        total = fused_sum(deltas(rows, np.float32(0.0), i), by, np.float32(0.0))
        put(divided(total, divisor), out, i)
        top = larger(rows, i, top)
    return top


@cached_kernel
def arc(rows: Any, start_factor: Any, end_factor: Any, out: Any) -> Any:
    """`base * start + other * end`; the rows are the other model, then the base."""
    top = np.uint32(0)
    others, bases = rows[0], rows[1]
    for i in range(out.size):
        other, base = float_of(word(others, i)), float_of(word(bases, i))
        put(fma(other, end_factor, base * start_factor), out, i)
        top = larger(rows, i, top)
    return top


@cached_kernel
def inner_products(rows: Any, found: Any) -> int:
    """Add `x·x`, `y·y`, `x·y` to `found` (`[3]`, float64).

    `x` and `y` are the first two rows; where there is a third, it is the base, and they are task
    vectors. Each place of a tile has float64 sums of its own, so that the loop is a vector one, and
    the result the same on every machine.
    """
    xx, yy, xy = tile(np.float64), tile(np.float64), tile(np.float64)
    for i in range(LANES):
        xx[i] = yy[i] = xy[i] = 0.0
    for start in range(0, rows[0].size, LANES):
        part = cut(rows, start, min(start + LANES, rows[0].size))
        for i in range(part[0].size):
            x, y = pair_of(part, i)
            a, b = np.float64(x), np.float64(y)
            xx[i] += a * a
            yy[i] += b * b
            xy[i] += a * b
    for i in range(LANES):
        found[0] += xx[i]
        found[1] += yy[i]
        found[2] += xy[i]
    return 0


def pair_of(rows: Any, i: Any) -> Any:
    """Entry `i` of the first two rows, less the third's where there is one; float32."""
    raise NotImplementedError


@by_type(pair_of)
def _pair_of(rows: Any, i: Any) -> Any:  # noqa: ARG001
    if len(rows) == 2:
        return lambda rows, i: (float_of(word(rows[0], i)), float_of(word(rows[1], i)))
    return lambda rows, i: deltas(rows[:2], float_of(word(rows[2], i)), i)


@cached_kernel
def combine_task_vectors(rows: Any, factors: Any, out: Any) -> Any:
    """`sum(factor_m * (x_m - base)) + base`, each product and sum rounded once (fused)."""
    tuned, last = rows[:-1], rows[len(rows) - 1]
    by = scalars(tuned, factors, 0)
    top = np.uint32(0)
    for i in range(out.size):
        base = float_of(word(last, i))
        put(fused_sum(deltas(tuned, base, i), by, np.float32(0.0)) + base, out, i)
        top = larger(rows, i, top)
    return top


@cached_kernel
def add_task_vectors(rows: Any, factors: Any, divisor: Any, scale: Any, out: Any) -> Any:
    """`base + scale * (sum(factor_m * (x_m - base)) / divisor)`, every step rounded; without a
    divisor (None) the sum is not divided."""
    tuned, last = rows[:-1], rows[len(rows) - 1]
    by = scalars(tuned, factors, 0)
    top = np.uint32(0)
    for i in range(out.size):
        base = float_of(word(last, i))
        total = plain_sum(products(deltas(tuned, base, i), by), np.float32(0.0))
        put(divided(total, divisor) * scale + base, out, i)
        top = larger(rows, i, top)
    return top
