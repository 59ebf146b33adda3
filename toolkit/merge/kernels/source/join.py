"""What follows thinning: weighted task vectors are summed or put to the vote, scaled, and added to
the base.

Every product and sum is rounded by itself, in the order of the torch definitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.source.entries import by_type, divided, plain_sum
from toolkit.merge.kernels.source.primitives import decode, kernel


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
def unite(weighted: Any, factors: Any, votes: Any, divisor: Any, scale: Any, base: Any) -> Any:
    """`base + scale * union` for one entry.

    None is a type of its own, of which numba knows while it compiles: what is not asked for is not
    in the loop.

    Args:
        weighted: of each model the thinned and weighted task vector's entry, a tuple of float32.
        factors: of each model, a tuple of float32.
        votes: True to leave out whoever is outvoted on the sign, else None.
        divisor: float32, by which the sum is divided; None where it is not divided. Under votes the
            summed weight of the models that agree takes its place.
        scale: float32.
        base: float32.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    total = plain_sum(weighted, zero)
    if votes is None:
        return divided(total, divisor) * scale + base
    sign = one if total >= zero else -one
    total, shares = those_that_agree(weighted, factors, sign, zero, zero)
    # `ZERO_WEIGHT` of the definitions: weights of opposite signs that agree may sum to zero.
    if divisor is not None:
        total = total / (one if abs(shares) < np.float32(1e-8) else shares)
    return total * scale + base


def those_that_agree(weighted: Any, factors: Any, sign: Any, total: Any, shares: Any) -> Any:
    """`total` and `shares` plus entries and factors of the models whose sign is that of `sign`."""
    raise NotImplementedError


@by_type(those_that_agree)
def _those_that_agree(weighted: Any, factors: Any, sign: Any, total: Any, shares: Any) -> Any:  # noqa: ARG001
    def last(weighted: Any, factors: Any, sign: Any, total: Any, shares: Any) -> Any:
        zero = np.float32(0.0)
        agrees = weighted[0] * sign > zero
        return (
            total + (weighted[0] if agrees else zero),
            shares + (factors[0] if agrees else zero),
        )

    def more(weighted: Any, factors: Any, sign: Any, total: Any, shares: Any) -> Any:
        zero = np.float32(0.0)
        agrees = weighted[0] * sign > zero
        more_total = total + (weighted[0] if agrees else zero)
        more_shares = shares + (factors[0] if agrees else zero)
        return those_that_agree(weighted[1:], factors[1:], sign, more_total, more_shares)

    return last if len(weighted) == 1 else more
