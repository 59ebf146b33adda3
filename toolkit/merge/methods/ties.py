"""TIES: trim, elect a sign, average those that agree; per tensor as in mergekit or per model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_between, check_density
from toolkit.merge.methods.sparsify import cut, restore_l1, trim
from toolkit.merge.methods.task_vectors import join, task_vectors
from toolkit.merge.registry import PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("ties", reference="https://arxiv.org/abs/2306.01708")
def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: PerModel,
    density: PerModel = (1.0,),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """TIES: trim each task vector, elect a sign per entry, average those that agree.

    `base + lambda * sum_A(w_m * d_m) / sum_A(w_m)`, where `d_m` is the trimmed task vector and `A`
    the models whose `w_m * d_m` has the sign of the sum over all models. Trimming is per tensor,
    not per model as in the paper; this follows mergekit (`ties_global` follows the paper). Entries
    tied at the trimming threshold are all kept, so that no order of sorting decides.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        weight: multiplier of each task vector, applied before the election.
        density: fraction of entries kept in each task vector, in [0, 1]; above 0, at least one.
        normalize: divide by the summed weight of the models that agree.
        rescale: multiply each trimmed task vector so that its magnitudes sum to what they did.
        lambda_: scale of the merged task vector.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density is outside [0, 1].

    Reference:
        Yadav et al. 2023, TIES-Merging.
    """
    check_density(density)
    deltas = task_vectors(tensors, base)
    trimmed = [trim(delta, kept) for delta, kept in zip(deltas, density, strict=True)]
    if rescale:
        trimmed = [restore_l1(kept, delta) for kept, delta in zip(trimmed, deltas, strict=True)]
    return join(base, trimmed, weight, consensus=True, normalize=normalize, lambda_=lambda_)


@merge_method("ties_global", reference="https://arxiv.org/abs/2306.01708", elementwise=True)
def ties_global(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    thresholds: Sequence[float],
    weight: PerModel,
    density: PerModel = (1.0,),
    normalize: bool = True,
    lambda_: float = 1.0,
) -> Tensor:
    """TIES as in the paper: each model's task vector is trimmed as a whole, over all its tensors.

    A tensor that a model hardly changed may lose all its entries, one that it changed much may keep
    them all; `ties` keeps the same share of each. Everything else is as in `ties`.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        thresholds: for each model the smallest magnitude that is kept: of its `n` entries over all
            tensors, the `max(1, int(density * n))`-th largest. Made by the engine; no YAML
            parameter.
        weight: multiplier of each task vector, applied before the election.
        density: fraction of entries kept of each model, in [0, 1]; one value for all tensors.
        normalize: divide by the summed weight of the models that agree.
        lambda_: scale of the merged task vector.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density is outside [0, 1].

    Reference:
        Yadav et al. 2023, TIES-Merging.
    """
    check_density(density)
    check_between(
        "thresholds", thresholds, 0.0, float("inf"), "they are magnitudes of task vectors."
    )
    deltas = task_vectors(tensors, base)
    trimmed = [
        # The engine's threshold is 0 at densities of 0 and 1 alike, so both are told apart here.
        delta if share >= 1.0 else cut(delta, threshold if share > 0.0 else float("inf"))
        for delta, threshold, share in zip(deltas, thresholds, density, strict=True)
    ]
    return join(base, trimmed, weight, consensus=True, normalize=normalize, lambda_=lambda_)
