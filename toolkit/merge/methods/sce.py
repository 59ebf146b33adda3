"""SCE: select entries by variance, weigh models by size of change, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_between
from toolkit.merge.methods.sparsify import kth_smallest
from toolkit.merge.methods.task_vectors import task_vectors
from toolkit.merge.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SHARE = 1e-6
"""Summed shares of the models that agree are not divided by less, as in mergekit."""


@merge_method("sce", reference="https://arxiv.org/abs/2408.07990")
def sce(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    select_topk: float = 1.0,
    equal_below: float = 1e-6,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """Select, calculate, erase: task vectors weighted by their own size.

    1. Select: keep the `select_topk` share of the entries whose task vectors vary at all between
       the models, those of largest variance; entries tied at the threshold are all kept.
    2. Calculate: `s_m = mean(d_m ** 2)`, divided by their sum over the models.
    3. Erase: per entry leave out the models whose sign is not that of `sum(d_m)`, and take
       `base + sum_A(s_m * d_m) / sum_A(s_m)` over the others.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        select_topk: fraction of varying entries kept, in [0, 1]; 1 keeps all entries.
        equal_below: where the mean squares sum to less, all models count equally. mergekit's 1e-6
            takes in most fine-tuned models (changes of 0.001 and less); 0 weighs them too, as in
            the paper.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: `select_topk` is outside [0, 1] or `equal_below` is negative.

    Reference:
        Wan et al. 2024, FuseChat.
    """
    import torch

    check_between("select_topk", select_topk, 0.0, 1.0, "it is the fraction of entries to keep.")
    check_between("equal_below", equal_below, 0.0, math.inf, "it is a sum of mean squares.")
    if base.numel() == 0:
        return base.clone()
    deltas = task_vectors(tensors, base)
    if select_topk < 1.0:
        selected = _most_varied(deltas, select_topk)
        deltas = [torch.where(selected, delta, 0.0) for delta in deltas]
    # In float64: squares of changes of 1e-4 and less are lost in a float32 sum over millions.
    mean_squares = [float(delta.square().mean(dtype=torch.float64)) for delta in deltas]
    square_sum = sum(mean_squares)
    equal = square_sum < equal_below or square_sum == 0.0
    shares = [1.0 / len(mean_squares) if equal else size / square_sum for size in mean_squares]
    elected_positive = torch.stack(deltas).sum(dim=0) >= 0
    merged, agreed_share = torch.zeros_like(base), torch.zeros_like(base)
    for delta, share in zip(deltas, shares, strict=True):
        agrees = (delta != 0) & ((delta > 0) == elected_positive)
        merged.add_(torch.where(agrees, delta * share, 0.0))
        agreed_share.add_(agrees.to(base.dtype), alpha=share)
    return merged.div_(agreed_share.clamp_(min=SMALLEST_SHARE)).add_(base)


def _most_varied(deltas: Sequence[Tensor], share: float) -> Tensor:
    """Where the variance between models is among the largest of those that are not zero."""
    import torch

    variance = torch.stack(list(deltas)).var(dim=0, correction=0)
    kept_count = int(int(variance.count_nonzero()) * share)
    if kept_count == 0:
        return torch.zeros_like(variance, dtype=torch.bool)
    return variance >= kth_smallest(variance, variance.numel() - kept_count + 1)
