"""DARE: task vectors of which a random share is dropped and the rest is scaled up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.kernels.stream import EntryStream
from toolkit.merge.methods.checks import check_density
from toolkit.merge.methods.sparsify import drop_at_random
from toolkit.merge.methods.task_vectors import join, task_vectors
from toolkit.merge.registry import PerModel, merge_method

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@merge_method("dare_linear", reference="https://arxiv.org/abs/2311.03099")
def dare_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    generator: torch.Generator | EntryStream,
    weight: PerModel,
    density: PerModel = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """Task arithmetic on randomly thinned task vectors: `base + lambda * sum(w_m * d_m)`.

    Each entry of `x_m - base` is kept with probability `density`. The paper divides what is left by
    the density; mergekit, followed here, multiplies it so that its magnitudes sum to what they did
    before, which comes to nearly the same for a large tensor and never blows up a small one.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        generator: source of the masks, model after model.
        weight: multiplier of each task vector.
        density: probability with which an entry is kept, in [0, 1].
        normalize: divide the sum by the summed weight.
        rescale: restore each thinned task vector's sum of magnitudes.
        lambda_: scale of the merged task vector.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density is outside [0, 1], or the weights sum to zero under `normalize`.

    Reference:
        Yu et al. 2023, Language models are Super Mario.
    """
    deltas = _thinned(tensors, base, density, generator, rescale=rescale)
    return join(base, deltas, weight, consensus=False, normalize=normalize, lambda_=lambda_)


@merge_method("dare_ties", reference="https://arxiv.org/abs/2311.03099")
def dare_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    generator: torch.Generator | EntryStream,
    weight: PerModel,
    density: PerModel = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """`dare_linear` with the sign election of `ties`: outvoted entries are left out.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        generator: source of the masks, model after model.
        weight: multiplier of each task vector, applied before the election.
        density: probability with which an entry is kept, in [0, 1].
        normalize: divide by the summed weight of the models that agree.
        rescale: restore each thinned task vector's sum of magnitudes.
        lambda_: scale of the merged task vector.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density is outside [0, 1].

    Reference:
        Yu et al. 2023, Language models are Super Mario.
    """
    deltas = _thinned(tensors, base, density, generator, rescale=rescale)
    return join(base, deltas, weight, consensus=True, normalize=normalize, lambda_=lambda_)


def _thinned(
    tensors: Sequence[Tensor],
    base: Tensor,
    density: Sequence[float],
    generator: torch.Generator | EntryStream,
    *,
    rescale: bool,
) -> list[Tensor]:
    check_density(density)
    return [
        drop_at_random(delta, keep_probability, generator, rescale=rescale)
        for delta, keep_probability in zip(task_vectors(tensors, base), density, strict=True)
    ]
