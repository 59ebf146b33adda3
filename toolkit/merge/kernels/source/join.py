"""What follows thinning, tile by tile: weighted task vectors are summed or put to the vote, scaled,
and added to the base.

Every product and sum is rounded by itself, in the order of the torch definitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.source.primitives import decode, encode, kernel


@kernel
def subtract(x: Any, base: Any, n: int) -> None:
    """`x - base`, in place."""
    for i in range(n):
        x[i] = x[i] - base[i]


@kernel
def read_task_vector(rows: Any, model: int, start: int, n: int, x: Any, base: Any) -> None:
    """`n` entries of `x_m - base` from `start` on into `x`, and the base's into `base`; float32."""
    decode(rows[model][start : start + n], x.view(np.uint32))
    decode(rows[len(rows) - 1][start : start + n], base.view(np.uint32))
    subtract(x, base, n)


@kernel
def unite(
    weighted: Any, n: int, factors: Any, votes: bool, divisor: Any, divides: bool, scale: Any,
    base: Any, scratch: Any, out: Any,
) -> None:  # fmt: skip
    """`base + scale * union`, cast once into `out`.

    Args:
        weighted: `[M, ≥ n]`, float32: thinned and weighted task vectors.
        n: entries of the tile.
        factors: `[M]`, float32.
        votes: leave out, entry by entry, whoever is outvoted on the sign.
        divisor: float32; without votes the sum is divided by it, under `divides`.
        divides: divide, under votes by the summed weight of the models that agree.
        scale: float32.
        base: `[≥ n]`, float32.
        scratch: `[3, ≥ n]`, float32.
        out: `[n]`.
    """
    total, sign, shares = scratch[0], scratch[1], scratch[2]
    zero, one = np.float32(0.0), np.float32(1.0)
    total[:n] = zero
    for m in range(weighted.shape[0]):
        row = weighted[m]
        for i in range(n):
            total[i] = total[i] + row[i]
    if votes:
        for i in range(n):
            sign[i] = one if total[i] >= zero else -one
        total[:n] = zero
        shares[:n] = zero
        for m in range(weighted.shape[0]):
            row, factor = weighted[m], factors[m]
            for i in range(n):
                agrees = row[i] * sign[i] > zero
                total[i] = total[i] + (row[i] if agrees else zero)
                shares[i] = shares[i] + (factor if agrees else zero)
        if divides:
            for i in range(n):
                by = one if abs(shares[i]) < np.float32(1e-8) else shares[i]
                total[i] = total[i] / by
    elif divides:
        for i in range(n):
            total[i] = total[i] / divisor
    for i in range(n):
        total[i] = total[i] * scale + base[i]
    encode(total.view(np.uint32), out)
