"""DELLA: task vectors thinned at random, small entries more often than large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.kernels.stream import EntryStream
from toolkit.merge.methods.checks import ParameterError, check_between, check_density
from toolkit.merge.methods.sparsify import drop_by_rank
from toolkit.merge.methods.task_vectors import join, task_vectors
from toolkit.merge.registry import PerModel, merge_method

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@merge_method("della", reference="https://arxiv.org/abs/2406.11617")
def della(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    generator: torch.Generator | EntryStream,
    weight: PerModel,
    density: PerModel = (1.0,),
    epsilon: PerModel = (0.15,),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """Random thinning by rank (MagPrune), then the sign election of `ties`.

    In each row of `x_m - base` the entry of relative rank `r` (0 for the smallest magnitude, 1 for
    the largest, ties share their mean) is kept with probability
    `density - epsilon + 2 * epsilon * r`; what is left is multiplied so that the tensor's
    magnitudes sum to what they did before (the paper divides each entry by its probability and its
    `epsilon` is twice this one; this follows mergekit). Densities of 0 and 1 drop all and nothing.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order; rows run along dimension 1, a
            vector is one row.
        base: base-model tensor, `[...]`, float32.
        generator: source of the masks, model after model.
        weight: multiplier of each task vector, applied before the election.
        density: mean probability with which an entry is kept, in [0, 1].
        epsilon: half the spread of the probabilities; `density ± epsilon` must lie in (0, 1).
        normalize: divide by the summed weight of the models that agree.
        rescale: restore each thinned task vector's sum of magnitudes.
        lambda_: scale of the merged task vector.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density is outside [0, 1], or an epsilon does not suit it.

    Reference:
        Deep et al. 2024, DELLA-Merging.
    """
    deltas = _thinned(tensors, base, density, epsilon, generator, rescale=rescale)
    return join(base, deltas, weight, consensus=True, normalize=normalize, lambda_=lambda_)


@merge_method("della_linear", reference="https://arxiv.org/abs/2406.11617")
def della_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    generator: torch.Generator | EntryStream,
    weight: PerModel,
    density: PerModel = (1.0,),
    epsilon: PerModel = (0.15,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """`della` without the sign election: `base + lambda * sum(w_m * d_m)`.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order; rows run along dimension 1, a
            vector is one row.
        base: base-model tensor, `[...]`, float32.
        generator: source of the masks, model after model.
        weight: multiplier of each task vector.
        density: mean probability with which an entry is kept, in [0, 1].
        epsilon: half the spread of the probabilities; `density ± epsilon` must lie in (0, 1).
        normalize: divide the sum by the summed weight.
        rescale: restore each thinned task vector's sum of magnitudes.
        lambda_: scale of the merged task vector.
        int8_mask: without effect: in mergekit it chooses the type of a mask.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: a density is outside [0, 1], an epsilon does not suit it, or the weights sum to
            zero under `normalize`.

    Reference:
        Deep et al. 2024, DELLA-Merging.
    """
    deltas = _thinned(tensors, base, density, epsilon, generator, rescale=rescale)
    return join(base, deltas, weight, consensus=False, normalize=normalize, lambda_=lambda_)


def _thinned(
    tensors: Sequence[Tensor],
    base: Tensor,
    density: Sequence[float],
    epsilon: Sequence[float],
    generator: torch.Generator | EntryStream,
    *,
    rescale: bool,
) -> list[Tensor]:
    check_density(density)
    check_epsilon(density, epsilon)
    return [
        drop_by_rank(delta, kept, spread, generator, rescale=rescale)
        for delta, kept, spread in zip(task_vectors(tensors, base), density, epsilon, strict=True)
    ]


def check_epsilon(density: Sequence[float], epsilon: Sequence[float]) -> None:
    """Refuse an `epsilon` under which `density ± epsilon` is no chance.

    Raises:
        ParameterError: names it, and what it has to be under.
    """
    check_between("epsilon", epsilon, 0.0, 0.5, "it is half the spread of keep probabilities.")
    for kept, spread in zip(density, epsilon, strict=True):
        if 0.0 < kept < 1.0 and not spread < min(kept, 1.0 - kept):
            raise ParameterError(
                f"epsilon: with density {kept:g} it must be under {min(kept, 1.0 - kept):g} "
                f"(got {spread:g}), so that density ± epsilon stays between 0 and 1.",
                spread,
            )
