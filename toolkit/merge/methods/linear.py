"""Weighted averages, of models and of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.errors import MergeError
from toolkit.merge.registry import PerModel, merge_method


@merge_method("linear", reference="https://arxiv.org/abs/2203.05482", elementwise=True)
def linear(tensors: Sequence[Tensor], *, weight: PerModel, normalize: bool = True) -> Tensor:
    """Weighted mean of the models: `sum(w_m * x_m) / sum(w_m)`.

    Args:
        tensors: one tensor a model, `[...]` each, float32, in file order.
        weight: multiplier of each model.
        normalize: divide by the sum of the weights.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: the weights sum to zero under `normalize`.

    Reference:
        Wortsman et al. 2022, Model soups.
    """
    total = sum(weight)
    if normalize and abs(total) < 1e-8:
        raise MergeError(
            f"weight: {list(weight)} sum to zero, and normalize divides by the sum; "
            "change the weights or set normalize: false."
        )
    merged = torch.zeros_like(tensors[0])
    for tensor, factor in zip(tensors, weight, strict=True):
        merged.add_(tensor, alpha=factor)
    return merged.div_(total) if normalize else merged


@merge_method("task_arithmetic", reference="https://arxiv.org/abs/2212.04089", elementwise=True)
def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: PerModel,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Base plus the weighted sum of task vectors: `base + lambda * sum(w_m * (x_m - base))`.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        weight: multiplier of each task vector.
        normalize: divide the sum by the summed weight.
        lambda_: scale of the merged task vector.

    Returns:
        Merged tensor, `[...]`, float32.

    Reference:
        Ilharco et al. 2022, Editing models with task arithmetic.
    """
    delta = torch.zeros_like(base)
    for tensor, factor in zip(tensors, weight, strict=True):
        delta.add_(tensor - base, alpha=factor)
    if normalize:
        total = sum(weight)
        if abs(total) < 1e-8:
            raise MergeError(
                f"weight: {list(weight)} sum to zero, and normalize divides by the sum; "
                "change the weights or set normalize: false."
            )
        delta.div_(total)
    return delta.mul_(lambda_).add_(base)
