"""Kernels: task vectors trimmed by magnitude, with or without a vote on signs."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import TILE
from toolkit.merge.kernels.source.entries import (
    by_type,
    deltas,
    float_of,
    larger,
    products,
    put,
    scalars,
    word,
)
from toolkit.merge.kernels.source.join import read_task_vector, unite
from toolkit.merge.kernels.source.primitives import cached_kernel, tile
from toolkit.merge.kernels.source.random import add_sizes


@cached_kernel
def join_trimmed(
    rows: Any, factors: Any, ratios: Any, low: Any, high: Any, votes: Any, divisor: Any,
    scale: Any, out: Any,
) -> Any:  # fmt: skip
    """TIES and breadcrumbs: task vectors without their small (and large) entries, united.

    Args:
        rows: tuned models and the base last, `[n]` each.
        factors: `[M]`, float32.
        ratios: `[M]`, float32: what rescaling multiplies by.
        low: `[M]`, float32: smaller magnitudes count as zero.
        high: `[M]`, float32: and so do larger ones.
        votes: True or None; and what follows: see `unite`.
        divisor: float32 or None.
        scale: float32.
        out: `[n]`.

    Returns:
        Bits of the largest magnitude among the inputs.
    """
    tuned, last = rows[:-1], rows[len(rows) - 1]
    by, least, most = scalars(tuned, factors, 0), scalars(tuned, low, 0), scalars(tuned, high, 0)
    restored = scalars(tuned, ratios, 0)
    top = np.uint32(0)
    for i in range(out.size):
        base = float_of(word(last, i))
        kept = trimmed(deltas(tuned, base, i), least, most)
        weighted = products(products(kept, restored), by)
        put(unite(weighted, by, votes, divisor, scale, base), out, i)
        top = larger(rows, i, top)
    return top


def trimmed(values: Any, least: Any, most: Any) -> Any:
    """A tuple of float32 with zero where a magnitude is not from `least` to `most`."""
    raise NotImplementedError


@by_type(trimmed)
def _trimmed(values: Any, least: Any, most: Any) -> Any:  # noqa: ARG001
    def last(values: Any, least: Any, most: Any) -> Any:
        size = abs(values[0])
        is_kept = (size >= least[0]) & (size <= most[0])
        return (values[0] if is_kept else np.float32(0.0),)

    def more(values: Any, least: Any, most: Any) -> Any:
        size = abs(values[0])
        is_kept = (size >= least[0]) & (size <= most[0])
        kept = values[0] if is_kept else np.float32(0.0)
        return (kept,) + trimmed(values[1:], least[1:], most[1:])  # noqa: RUF005

    return last if len(values) == 1 else more


@cached_kernel
def sizes_trimmed(rows: Any, model: int, least: Any, most: Any, lanes: Any) -> int:
    """Add the magnitudes of a task vector, and of what trimming leaves, to `lanes`."""
    x, base = tile(np.float32), tile(np.float32)
    flags = tile(np.uint8)
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        read_task_vector(rows, model, start, n, x, base)
        for i in range(n):
            flags[i] = np.uint8((abs(x[i]) >= least) & (abs(x[i]) <= most))
        add_sizes(x, flags, n, lanes)
    return 0
