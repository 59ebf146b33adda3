"""Spherical interpolation of two models, or of two task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import MergeError
from toolkit.merge.methods.checks import ZERO_WEIGHT
from toolkit.merge.methods.geometry import combination, cosine
from toolkit.merge.registry import PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor

COLLINEAR_COSINE = 0.9995
"""Above this |cosine| the arc is so flat that slerp uses the chord, as in mergekit."""

INDISTINGUISHABLE_COSINE = 1.0 - 1e-7
"""Above this |cosine| float32 cannot tell arc from chord; nuslerp keeps to the arc up to here."""


@merge_method("slerp", reference="https://en.wikipedia.org/wiki/Slerp")
def slerp(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Move from `base` (t = 0) to the other model (t = 1) along the arc between them.

    The angle is that between the two tensors, each seen as one vector; the factors
    `sin((1-t)*angle)/sin(angle)` and `sin(t*angle)/sin(angle)` apply to the tensors as they are.
    Nearly parallel tensors are interpolated linearly, and so are those of which one is zero and has
    no direction (mergekit takes a right angle there, so that halfway leaves 0.71 of the other).

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
    base_factor, other_factor = slerp_factors(cosine(base, other), t)
    return (base * base_factor).add_(other, alpha=other_factor)


@merge_method("nuslerp", reference="https://github.com/arcee-ai/mergekit")
def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    weight: PerModel,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Tensor:
    """Spherical interpolation of two models by weights; with a base, of their task vectors.

    `slerp` at `t = w_2 / (w_1 + w_2)`, but along the arc up to the flattest angles; with a base,
    `base + slerp(x_1 - base, x_2 - base)`. Weights that sum to zero count as equal, as in mergekit.

    Args:
        tensors: the two models' tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32, or None.
        weight: of the two models.
        nuslerp_flatten: take each tensor as one vector, with one angle.
        nuslerp_row_wise: without flattening, take the angles along the first dimension instead of
            along the last.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: there are not exactly two models.

    Reference:
        mergekit, nuslerp.
    """
    if len(tensors) != 2:
        raise MergeError(
            f"nuslerp joins two models besides base_model (got {len(tensors)}); "
            "use multislerp for more."
        )
    weight_sum = sum(weight)
    t = weight[1] / weight_sum if abs(weight_sum) > ZERO_WEIGHT else 0.5
    first, second = tensors if base is None else [tensor - base for tensor in tensors]
    if nuslerp_flatten:
        factors = slerp_factors(cosine(first, second), t, INDISTINGUISHABLE_COSINE)
        merged = combination([first, second], factors)
    else:
        start, end = _factors_along(first, second, t, 0 if nuslerp_row_wise else -1)
        merged = start * first + end * second
    return merged if base is None else merged.add_(base)


def slerp_factors(cos: float, t: float, collinear: float = COLLINEAR_COSINE) -> tuple[float, float]:
    """Multipliers of the first and second tensor at `t`; linear where |cos| exceeds `collinear`.

    >>> slerp_factors(0.0, 0.5)  # at a right angle, halfway: sin(45°) each
    (0.7071067811865475, 0.7071067811865475)
    >>> slerp_factors(1.0, 0.25)
    (0.75, 0.25)
    """
    # Of a flat angle the sine is nearly zero, and its quotients lose their digits; between opposite
    # directions no arc is the shortest.
    if abs(cos) > collinear:
        return 1.0 - t, t
    angle = math.acos(cos)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _factors_along(a: Tensor, b: Tensor, t: float, dim: int) -> tuple[Tensor, Tensor]:
    """`slerp_factors` of every pair of vectors along one dimension, which is kept with size 1."""
    import torch

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(dim=dim, keepdim=True, dtype=torch.float64)

    norms = (dot(a, a) * dot(b, b)).sqrt()
    cos = torch.where(norms > 0.0, dot(a, b) / norms, 1.0).clamp(-1.0, 1.0)
    flat = cos.abs() > INDISTINGUISHABLE_COSINE
    # Any angle with a sine serves where it is not used: both branches of `where` are computed.
    angle = torch.where(flat, 0.5 * math.pi, cos.acos())
    start = torch.where(flat, 1.0 - t, ((1.0 - t) * angle).sin() / angle.sin())
    end = torch.where(flat, t, (t * angle).sin() / angle.sin())
    return start.to(a.dtype), end.to(a.dtype)
