"""Weighted sums: of models, of task vectors, and one model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_models, weight_total
from toolkit.merge.methods.task_vectors import join, task_vectors
from toolkit.merge.registry import PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


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
    import torch

    total = weight_total(weight) if normalize else 1.0
    merged = torch.zeros_like(tensors[0])
    for tensor, factor in zip(tensors, weight, strict=True):
        # Torch fuses the product and the sum, and the linear kernel rounds where torch does.
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
    density: PerModel = (1.0,),  # noqa: ARG001
    rescale: bool = False,  # noqa: ARG001
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """Base plus the weighted sum of task vectors: `base + lambda * sum(w_m * (x_m - base))`.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        weight: multiplier of each task vector.
        normalize: divide the sum by the summed weight.
        lambda_: scale of the merged task vector.
        density: without effect, as in mergekit: nothing is trimmed here.
        rescale: without effect, as nothing is trimmed.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: the weights sum to zero under `normalize`.

    Reference:
        Ilharco et al. 2022, Editing models with task arithmetic.
    """
    deltas = task_vectors(tensors, base)
    return join(base, deltas, weight, consensus=False, normalize=normalize, lambda_=lambda_)


@merge_method("passthrough", reference="https://github.com/arcee-ai/mergekit", elementwise=True)
def passthrough(tensors: Sequence[Tensor], *, scale: PerModel = (1.0,)) -> Tensor:
    """One model's tensor, times `scale`: for stacking layers of several models.

    Args:
        tensors: the one model's tensor, `[...]`, float32.
        scale: its multiplier.

    Returns:
        Tensor, `[...]`, float32.

    Raises:
        MergeError: there is not exactly one model.

    Reference:
        mergekit, passthrough.
    """
    check_models(
        "passthrough", tensors, 1, 1, "give each slice one source, and leave out base_model."
    )
    return tensors[0] * scale[0]
