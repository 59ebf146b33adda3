"""Means on the sphere: of any number of models by direction, with a length put back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import MergeError
from toolkit.merge.methods.checks import check_between, weight_total
from toolkit.merge.methods.geometry import combination, inner_products
from toolkit.merge.registry import PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


_ROUNDED_LENGTH, _ROUNDED_ANGLE = 1e-8, 1e-7
"""What float64 leaves of a mean direction that cancels out, and of an angle of zero: roots of its
last place. Below these are no lengths and angles, however small `eps` and `tol` are."""


@merge_method("multislerp", reference="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea")
def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    weight: PerModel,
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """Weighted mean direction of the models, at their weighted mean length.

    With `u_m = x_m / |x_m|`: `sum(w_m * |x_m|) * v / |v|`, where `v = sum(w_m * u_m)`; with a base,
    the same of the task vectors, added to the base. The published recipe goes on to average the
    `u_m` in the tangent plane at `v / |v|`; with the same weights that average is zero, because `v`
    is their sum and has no part in its own tangent plane, so the step is left out.

    Args:
        tensors: the models' tensors, `[...]` each, float32, in file order.
        base: base-model tensor, the center of the sphere, `[...]`, float32, or None.
        weight: of each model.
        normalize_weights: divide the weights by their sum.
        eps: added to each length; a `v` shorter than this has no direction.

    Returns:
        Merged tensor, `[...]`, float32. One model alone is returned as it is. Where two models have
        no mean direction, their weighted mean; where all are zero, zero.

    Raises:
        MergeError: the weights sum to zero under `normalize_weights`, or three or more models have
            no mean direction.

    Reference:
        Goddard 2025, Multi-SLERP.
    """
    import torch

    check_between("eps", eps, 0.0, math.inf, "it keeps lengths from being divided by zero.")
    if len(tensors) == 1:
        return tensors[0].clone()
    weight_sum = weight_total(weight, "normalize_weights") if normalize_weights else 1.0
    shares = torch.tensor(list(weight), dtype=torch.float64) / weight_sum
    gram = inner_products(tensors, base)
    norms = gram.diagonal().sqrt()
    # Of no length there is no direction, and nothing to divide by where eps is 0.
    per_unit = torch.where(norms > 0.0, shares / (norms + eps), 0.0)
    # Of a sum that cancels out rounding may leave a negative square.
    mean_direction_length = float((per_unit @ gram @ per_unit).clamp(min=0.0).sqrt())
    if not mean_direction_length > max(eps, _ROUNDED_LENGTH):
        if len(tensors) > 2 and float(norms.max()) > 0.0:
            raise MergeError(
                f"weight: with {list(weight)} the models' directions cancel out, so there is no "
                "mean direction; change the weights."
            )
        coefficients = shares
    else:
        coefficients = per_unit * float(shares @ norms) / mean_direction_length
    return combination(tensors, coefficients.tolist(), base)


@merge_method("karcher", reference="https://arxiv.org/abs/2603.04972")
def karcher(tensors: Sequence[Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Mean direction with the smallest sum of squared angles, at the mean length.

    Starting at the normalized mean `v` of the unit tensors `u_m`, repeats: average the tangent
    vectors `a_m / sin(a_m) * (u_m - cos(a_m) * v)` with `a_m` the angle between `u_m` and `v`, and
    follow the average along the sphere. All models count equally; tensors shorter than `tol` have
    no direction and count in the mean length alone.

    Args:
        tensors: the models' tensors, `[...]` each, float32, in file order.
        max_iter: most steps to take.
        tol: length of a step at which to stop, and smallest angle and length that count.

    Returns:
        Merged tensor, `[...]`, float32. One model alone is returned as it is.

    Raises:
        MergeError: `max_iter` or `tol` is negative.

    Reference:
        Karcher 1977, Riemannian center of mass and mollifier smoothing.
    """
    import torch

    check_between("max_iter", max_iter, 0.0, math.inf, "it is the largest number of steps.")
    check_between("tol", tol, 0.0, math.inf, "it is the step at which to stop.")
    if len(tensors) == 1:
        return tensors[0].clone()
    gram = inner_products(tensors)
    norms = gram.diagonal().sqrt()
    valid = norms > tol
    coefficients = torch.zeros_like(norms)
    if valid.any():
        lengths = norms[valid]
        units = gram[valid][:, valid] / torch.outer(lengths, lengths)
        coefficients[valid] = _karcher_coefficients(units, max_iter, tol) / lengths
    return combination(tensors, (coefficients * norms.mean()).tolist())


def _karcher_coefficients(units: Tensor, max_iter: int, tol: float) -> Tensor:
    """The Karcher mean as coefficients of unit vectors, from their cosines.

    All its iterates are sums of the unit vectors, so the cosines are all that is needed.

    Args:
        units: cosine of every two vectors, `[M, M]`, float64.
        max_iter: most steps to take.
        tol: see `karcher`.

    Returns:
        Coefficients, `[M]`, float64.
    """
    import torch

    vector_count = len(units)
    least = max(tol, _ROUNDED_ANGLE)

    def length(coefficients: Tensor) -> float:
        return float((coefficients @ units @ coefficients).clamp(min=0.0).sqrt())

    mean = torch.full((vector_count,), 1.0 / vector_count, dtype=units.dtype)
    if length(mean) < least:  # opposite directions: start at the first
        mean = torch.zeros_like(mean)
        mean[0] = 1.0
    mean = mean / length(mean)
    for _ in range(max_iter):
        cos = (units @ mean).clamp(-1.0, 1.0)
        angle = cos.acos()
        # A vector at the mean does not pull; one opposite to it pulls in no particular direction.
        pulls = (angle >= least) & (angle <= math.pi - least)
        pull = torch.where(pulls, angle / angle.sin(), 0.0) / vector_count
        tangent = pull - (pull @ cos) * mean
        step = length(tangent)
        if step < least:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        # Rounding leads off the sphere, a little at every step.
        mean = mean / length(mean)
    return mean
