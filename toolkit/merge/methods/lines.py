"""LiNeS: task vectors scaled by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.task_vectors import join, task_vectors
from toolkit.merge.registry import PerModel, Place, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("lines", reference="https://arxiv.org/abs/2410.17146", elementwise=True)
def lines(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    place: Place,
    weight: PerModel = (1.0,),
    alpha: float = 0.0,
    beta: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """Task arithmetic that grows with depth: early layers stay general, late ones specialize.

    `base + (alpha + beta * l / (L - 1)) * sum(w_m * (x_m - base))` in layer `l` of `L`, counted
    from 0; tensors outside the layers (embeddings, final norm, head) take `alpha`, as in the
    authors' code. The defaults leave the first layer at the base and give the last one whole.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        place: the layer this tensor is in.
        weight: multiplier of each task vector.
        alpha: scale in the first layer and outside the layers.
        beta: what is added to it up to the last layer.
        normalize: divide the sum by the summed weight.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: the weights sum to zero under `normalize`.

    Reference:
        Wang et al. 2024, LiNeS.
    """
    deltas = task_vectors(tensors, base)
    scale = depth_scale(place, alpha, beta)
    return join(base, deltas, weight, consensus=False, normalize=normalize, lambda_=scale)


def depth_scale(place: Place, alpha: float, beta: float) -> float:
    """`alpha` in the first layer and outside the layers, `alpha + beta` in the last one.

    >>> depth_scale(Place("model.layers.1.mlp.up_proj.weight", 1, 5), alpha=0.2, beta=0.8)
    0.4
    """
    if place.layer is None or place.num_layers < 2:
        return alpha
    return alpha + beta * place.layer / (place.num_layers - 1)
