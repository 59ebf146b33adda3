"""Kernels: task vectors trimmed by magnitude, with or without a vote on signs."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import TILE
from toolkit.merge.kernels.source.join import read_task_vector, unite
from toolkit.merge.kernels.source.primitives import decode, kernel, tile, tiles
from toolkit.merge.kernels.source.random import add_sizes


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
    weighted = tiles(num_models, np.float32)
    x, base = tile(np.float32), tile(np.float32)
    scratch = tiles(3, np.float32)
    top = np.uint32(0)
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        top = np.uint32(max(top, decode(rows[num_models][start : start + n], base.view(np.uint32))))
        for m in range(num_models):
            top = np.uint32(max(top, decode(rows[m][start : start + n], x.view(np.uint32))))
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
