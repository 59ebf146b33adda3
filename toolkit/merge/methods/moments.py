"""Means in which statistics say what each model's entries are worth: RegMean and Fisher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_between
from toolkit.merge.methods.linear import linear
from toolkit.merge.registry import PerModel, PerModelPath, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("regmean", reference="https://arxiv.org/abs/2212.09849")
def regmean(
    tensors: Sequence[Tensor],
    *,
    weight: PerModel,
    statistics: PerModelPath,  # noqa: ARG001  (the engine reads the files)
    alpha: float = 0.9,
    moments: Sequence[Tensor | None] = (),
) -> Tensor:
    """The matrix whose outputs are nearest to each model's on that model's own inputs.

    `W = (sum(w_m * W_m @ G_m)) @ inverse(sum(w_m * G_m))` with `G_m = XᵀX` of the inputs `X` of
    model `m`: for linear layers the least-squares solution, where `alpha` is 1. Tensors without
    such statistics (embeddings, norms) are weighted means.

    Args:
        tensors: one tensor a model, `[O, I]` for a linear layer, float32, in file order.
        weight: multiplier of each model.
        statistics: file that `toolkit merge statistics --kind regmean` wrote of each model.
        alpha: what entries of `G_m` beside the diagonal are multiplied by, in [0, 1].
        moments: `G_m` of each model, `[I, I]`, or None. Made by the engine; no YAML parameter.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: alpha is outside [0, 1], or the weights sum to zero.

    Reference:
        Jin et al. 2023, Dataless knowledge fusion by merging weights of language models.
    """
    check_between("alpha", alpha, 0.0, 1.0, "a share of what is beside the diagonal.")
    mean = linear(tensors, weight=weight)
    # The engine reads them to the CPU, wherever the tensors are.
    known = [moment.to(mean.device) for moment in moments if moment is not None]
    if len(known) < len(tensors):
        return mean
    import torch

    # Of the difference from the mean alone: what no text reaches stays the mean.
    total = torch.zeros_like(known[0], dtype=torch.float64)
    pulled = torch.zeros_like(mean, dtype=torch.float64)
    for tensor, moment, factor in zip(tensors, known, weight, strict=True):
        gram = moment.double() * alpha
        gram.diagonal().copy_(moment.double().diagonal())
        total += factor * gram
        pulled += factor * ((tensor - mean).double() @ gram)
    # By the pseudo-inverse: inputs that no text had leave directions without any weight.
    merged: Tensor = mean.double() + pulled @ torch.linalg.pinv(total, hermitian=True)
    return merged.float()


@merge_method("fisher", reference="https://arxiv.org/abs/2111.09832")
def fisher(
    tensors: Sequence[Tensor],
    *,
    weight: PerModel,
    statistics: PerModelPath,  # noqa: ARG001  (the engine reads the files)
    floor: float = 1e-12,
    moments: Sequence[Tensor | None] = (),
) -> Tensor:
    """Mean of the models in which each entry counts by its Fisher information.

    `x = sum(w_m * F_m * x_m) / sum(w_m * F_m)`, entry by entry, where `F_m` is the mean square of
    the loss's gradient on texts of model `m`.

    Args:
        tensors: one tensor a model, `[...]` each, float32, in file order.
        weight: multiplier of each model.
        statistics: file that `toolkit merge statistics --kind fisher` wrote of each model.
        floor: added to all of `F_m`, so that entries that no text reaches are weighted means.
        moments: `F_m` of each model, `[...]`, or None. Made by the engine; no YAML parameter.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: floor is below 0, or the weights sum to zero.

    Reference:
        Matena & Raffel 2022, Merging models with Fisher-weighted averaging.
    """
    check_between("floor", floor, 0.0, float("inf"), "it is added to squares.")
    mean = linear(tensors, weight=weight)
    # The engine reads them to the CPU, wherever the tensors are.
    known = [moment.to(mean.device) for moment in moments if moment is not None]
    if len(known) < len(tensors):
        return mean
    import torch

    total = torch.zeros_like(mean, dtype=torch.float64)
    pulled = torch.zeros_like(mean, dtype=torch.float64)
    for tensor, moment, factor in zip(tensors, known, weight, strict=True):
        information = factor * (moment.double() + floor)
        total += information
        pulled += information * (tensor - mean).double()
    # No information at all (at floor 0), or weights that cancel out: the mean stays.
    merged: Tensor = mean.double() + torch.where(total != 0.0, pulled / total, 0.0)
    return merged.float()
