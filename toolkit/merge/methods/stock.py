"""Model Stock: how far to trust the average, from the angle between the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_models
from toolkit.merge.methods.geometry import combination, inner_products
from toolkit.merge.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_NORM_PRODUCT = 1e-6
"""Products of lengths are not divided by less, as in mergekit: smaller changes look more at right
angles than they are, and stay nearer the base."""


@merge_method("model_stock", reference="https://arxiv.org/abs/2403.19522")
def model_stock(tensors: Sequence[Tensor], base: Tensor, *, filter_wise: bool = False) -> Tensor:
    """Between the base and the average of the models, nearer to the base the less they agree.

    `t * mean(x_m) + (1 - t) * base` with `t = N * c / (1 + (N - 1) * c)`, where `c` is the mean
    cosine between the task vectors of every two of the `N` models. At the pole of `t`, where task
    vectors cancel out, the base is kept.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order; their order does not matter.
        base: base-model tensor, `[...]`, float32.
        filter_wise: one angle for each vector along the last dimension, instead of one for all.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: there are fewer than two models besides the base.

    Reference:
        Jang et al. 2024, Model Stock.
    """
    import torch

    check_models("model_stock", tensors, 2, None, "its angle is that between two of them.")
    model_count = len(tensors)
    cos = _row_cosines(tensors, base) if filter_wise else _whole_cosine(tensors, base)
    denominator = 1.0 + (model_count - 1) * cos
    # Both branches of `where` are computed, so the divisor has to be replaced as well.
    at_pole = denominator.abs() < 1e-6
    ratio = torch.where(at_pole, 0.0, model_count * cos / torch.where(at_pole, 1.0, denominator))
    average_share = ratio.to(device=base.device, dtype=base.dtype)
    average = combination(tensors, [1.0] * model_count).div_(model_count)
    return average_share * average + (1.0 - average_share) * base


def _whole_cosine(tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    """Mean cosine between every two task vectors, `[]`, float64."""
    import torch

    gram = inner_products(tensors, base)
    norms = gram.diagonal().sqrt()
    cosines = gram / torch.outer(norms, norms).clamp(min=SMALLEST_NORM_PRODUCT)
    rows, columns = torch.triu_indices(len(tensors), len(tensors), offset=1)
    return cosines[rows, columns].clamp(-1.0, 1.0).mean()


def _row_cosines(tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    """Mean cosine between every two task vectors' rows, `[..., 1]`, float64."""
    import torch

    deltas = [tensor - base for tensor in tensors]
    cosines = []
    for a, b in combinations(deltas, 2):
        dots = [
            (x * y).sum(dim=-1, keepdim=base.dim() > 0, dtype=torch.float64)
            for x, y in ((a, b), (a, a), (b, b))
        ]
        norms = (dots[1] * dots[2]).sqrt().clamp(min=SMALLEST_NORM_PRODUCT)
        cosines.append((dots[0] / norms).clamp(-1.0, 1.0))
    return torch.stack(cosines).mean(dim=0)
