"""TIES and its parts: trimming, sign election, disjoint mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.merge.registry import PerModel, merge_method


@merge_method("ties", reference="https://arxiv.org/abs/2306.01708")
def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: PerModel,
    density: PerModel = (1.0,),
    normalize: bool = True,
    lambda_: float = 1.0,
) -> Tensor:
    """TIES: trim each task vector, elect a sign per entry, average those that agree.

    Trimming is per tensor, not per model as in the paper; this follows mergekit. Entries tied at
    the trimming threshold are all kept, so that no order of sorting decides.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        weight: multiplier of each task vector, applied before the election.
        density: fraction of entries kept in each task vector, in [0, 1].
        normalize: divide by the summed weight of the models that agree.
        lambda_: scale of the merged task vector.

    Returns:
        Merged tensor, `[...]`, float32.

    Reference:
        Yadav et al. 2023, TIES-Merging.
    """
    deltas = [trim(tensor - base, kept) for tensor, kept in zip(tensors, density, strict=True)]
    merged = elect_and_average(deltas, weight, normalize=normalize)
    return merged.mul_(lambda_).add_(base)


def trim(delta: Tensor, density: float) -> Tensor:
    """Zero all but the `density` share of entries largest in magnitude, keeping ties."""
    if density >= 1.0:
        return delta
    count = int(density * delta.numel())
    if count == 0:
        return torch.zeros_like(delta)
    magnitude = delta.abs().flatten()
    threshold = magnitude.kthvalue(delta.numel() - count + 1).values
    return torch.where(delta.abs() >= threshold, delta, torch.zeros_like(delta))


def elect_and_average(
    deltas: Sequence[Tensor], weight: Sequence[float], *, normalize: bool
) -> Tensor:
    """Sum the weighted task vectors whose sign is that of the weighted total, entry by entry.

    With `normalize`, divide by the summed weight of those that agree and are not zero there.
    """
    weighted = [delta * factor for delta, factor in zip(deltas, weight, strict=True)]
    total = torch.zeros_like(deltas[0])
    for item in weighted:
        total.add_(item)
    positive = total >= 0
    merged, shares = torch.zeros_like(total), torch.zeros_like(total)
    for item, factor in zip(weighted, weight, strict=True):
        agrees = (item != 0) & ((item > 0) == positive)
        merged.add_(torch.where(agrees, item, torch.zeros_like(item)))
        shares.add_(agrees.to(shares.dtype), alpha=factor)
    if normalize:
        shares[shares.abs() < 1e-8] = 1.0
        merged.div_(shares)
    return merged
