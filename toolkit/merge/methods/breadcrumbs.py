"""Model Breadcrumbs: task vectors without their smallest entries and without their outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_between, check_density
from toolkit.merge.methods.sparsify import restore_l1, trim_with_outliers
from toolkit.merge.methods.task_vectors import join, task_vectors
from toolkit.merge.registry import PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("breadcrumbs", reference="https://arxiv.org/abs/2312.06795")
def breadcrumbs(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: PerModel,
    density: PerModel = (1.0,),
    gamma: PerModel = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """Task arithmetic on task vectors without outliers and without their smallest entries.

    `base + lambda * sum(w_m * d_m)`, where of `x_m - base` the `gamma` share of largest entries is
    dropped, then the smallest, until the `density` share is left. At density 1 nothing is dropped.
    Entries tied at either end are kept.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        weight: multiplier of each task vector.
        density: fraction of entries kept in each task vector, in [0, 1].
        gamma: fraction of largest entries dropped, in [0, 1]; less where `density + gamma` > 1.
        normalize: divide the sum by the summed weight.
        rescale: multiply each thinned task vector so that its magnitudes sum to what they did.
        lambda_: scale of the merged task vector.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density or gamma is outside [0, 1], or the weights sum to zero under
            `normalize`.

    Reference:
        Davari and Belilovsky 2023, Model Breadcrumbs.
    """
    deltas = _thinned(tensors, base, density, gamma, rescale=rescale)
    return join(base, deltas, weight, consensus=False, normalize=normalize, lambda_=lambda_)


@merge_method("breadcrumbs_ties", reference="https://arxiv.org/abs/2312.06795")
def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: PerModel,
    density: PerModel = (1.0,),
    gamma: PerModel = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """`breadcrumbs` with the sign election of `ties`: outvoted entries are left out.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        weight: multiplier of each task vector, applied before the election.
        density: fraction of entries kept in each task vector, in [0, 1].
        gamma: fraction of largest entries dropped, in [0, 1]; less where `density + gamma` > 1.
        normalize: divide by the summed weight of the models that agree.
        rescale: multiply each thinned task vector so that its magnitudes sum to what they did.
        lambda_: scale of the merged task vector.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density or gamma is outside [0, 1].

    Reference:
        Davari and Belilovsky 2023, Model Breadcrumbs.
    """
    deltas = _thinned(tensors, base, density, gamma, rescale=rescale)
    return join(base, deltas, weight, consensus=True, normalize=normalize, lambda_=lambda_)


def _thinned(
    tensors: Sequence[Tensor],
    base: Tensor,
    density: Sequence[float],
    gamma: Sequence[float],
    *,
    rescale: bool,
) -> list[Tensor]:
    check_density(density)
    check_between("gamma", gamma, 0.0, 1.0, "it is the fraction of largest entries to drop.")
    thinned = []
    for delta, kept_share, top in zip(task_vectors(tensors, base), density, gamma, strict=True):
        rest = trim_with_outliers(delta, kept_share, top)
        thinned.append(restore_l1(rest, delta) if rescale else rest)
    return thinned
