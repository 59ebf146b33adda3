"""What the task-vector methods share: differences from the base, and how they are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import ZERO_WEIGHT, weight_total

if TYPE_CHECKING:
    from torch import Tensor


def task_vectors(tensors: Sequence[Tensor], base: Tensor) -> list[Tensor]:
    """Tuned minus base, for each tuned model."""
    return [tensor - base for tensor in tensors]


def join(
    base: Tensor,
    deltas: Sequence[Tensor],
    weight: Sequence[float],
    *,
    consensus: bool,
    normalize: bool,
    lambda_: float,
) -> Tensor:
    """Base plus the scaled union of task vectors, with or without a vote on signs.

    Args:
        base: base-model tensor, `[...]`.
        deltas: task vectors, `[...]` each.
        weight: multiplier of each.
        consensus: leave out, entry by entry, whoever is outvoted on the sign.
        normalize: divide by the summed weights (under consensus: of those that agree).
        lambda_: scale of the whole.

    Raises:
        MergeError: the weights sum to zero under `normalize`, without consensus.
    """
    unite = elect_and_average if consensus else weighted_sum
    return unite(deltas, weight, normalize=normalize).mul_(lambda_).add_(base)


def weighted_sum(deltas: Sequence[Tensor], weight: Sequence[float], *, normalize: bool) -> Tensor:
    """`sum(w_m * delta_m)`, divided by `sum(w_m)` with `normalize`.

    Each product is rounded before it is added, so that entries do not depend on whether a
    processor fuses the two, nor on their position in the tensor.
    """
    import torch

    weight_sum = weight_total(weight) if normalize else 1.0
    merged = torch.zeros_like(deltas[0])
    for delta, factor in zip(deltas, weight, strict=True):
        merged.add_(delta * factor)
    return merged.div_(weight_sum) if normalize else merged


def elect_and_average(
    deltas: Sequence[Tensor], weight: Sequence[float], *, normalize: bool
) -> Tensor:
    """Sum the weighted task vectors whose sign is that of the weighted total, entry by entry.

    A total of zero elects the positive sign. With `normalize`, divide by the summed weight of those
    that agree and are not zero there; where that sum is zero, as with weights of opposite signs,
    nothing is divided.
    """
    import torch

    weighted = [delta * factor for delta, factor in zip(deltas, weight, strict=True)]
    weighted_total = torch.zeros_like(deltas[0])
    for item in weighted:
        weighted_total.add_(item)
    elected_positive = weighted_total >= 0
    merged, agreed_weight = torch.zeros_like(weighted_total), torch.zeros_like(weighted_total)
    for item, factor in zip(weighted, weight, strict=True):
        agrees = (item != 0) & ((item > 0) == elected_positive)
        merged.add_(torch.where(agrees, item, 0.0))
        agreed_weight.add_(agrees.to(agreed_weight.dtype), alpha=factor)
    if normalize:
        merged.div_(torch.where(agreed_weight.abs() < ZERO_WEIGHT, 1.0, agreed_weight))
    return merged
