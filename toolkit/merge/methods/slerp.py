"""Spherical interpolation of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from toolkit.errors import MergeError
from toolkit.merge.registry import merge_method

COLLINEAR_COSINE = 0.9995
"""Above this |cosine| the arc is so flat that the chord is used, as in mergekit."""


@merge_method("slerp", reference="https://en.wikipedia.org/wiki/Slerp")
def slerp(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Move from `base` (t = 0) to the other model (t = 1) along the arc between them.

    The angle is that between the two tensors, each seen as one vector; the factors
    `sin((1-t)*angle)/sin(angle)` and `sin(t*angle)/sin(angle)` apply to the tensors as they are.
    Nearly parallel tensors are interpolated linearly.

    Args:
        tensors: the one other model's tensor, `[...]`, float32.
        base: tensor at t = 0, `[...]`, float32.
        t: how far to go, normally in [0, 1].

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: there is not exactly one other model.

    Reference:
        Shoemake 1985, Animating rotation with quaternion curves.
    """
    if len(tensors) != 1:
        raise MergeError(
            f"slerp joins base_model and one other model (got {len(tensors)} others); "
            "use multislerp for more."
        )
    other = tensors[0]
    start, end = slerp_factors(cosine(base, other), t)
    return (base * start).add_(other, alpha=end)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors, summed in float64; 1 where either is zero."""
    x, y = a.flatten().double(), b.flatten().double()
    norms = float(x.norm()) * float(y.norm())
    return float(x @ y) / norms if norms > 0.0 else 1.0


def slerp_factors(cos: float, t: float) -> tuple[float, float]:
    """Multipliers of the first and second tensor at `t`.

    >>> slerp_factors(0.0, 0.5)  # at a right angle, halfway: sin(45°) each
    (0.7071067811865475, 0.7071067811865475)
    >>> slerp_factors(1.0, 0.25)
    (0.75, 0.25)
    """
    if abs(cos) > COLLINEAR_COSINE:
        return 1.0 - t, t
    angle = math.acos(cos)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
