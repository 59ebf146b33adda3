"""Methods that choose, entry by entry, between the base and one other model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_between, check_models
from toolkit.merge.methods.geometry import BLOCK
from toolkit.merge.methods.sparsify import kth_smallest
from toolkit.merge.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_DIFFERENCE = 1e-6
"""Differences are not divided by less, as in mergekit."""

SMALLEST_PROBABILITY = 1e-8
"""Added to every probability before logarithms are taken."""


@merge_method(
    "nearswap",
    reference="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    elementwise=True,
)
def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Take from the other model what lies within `t` of the base, and a part of the rest.

    `s * x + (1 - s) * base` with `s = min(1, t / |x - base|)`: no entry moves further than `t`.

    Args:
        tensors: the one other model's tensor, `[...]`, float32.
        base: base-model tensor, `[...]`, float32.
        t: furthest move, at least 0.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: there is not exactly one other model, or `t` is negative.

    Reference:
        alchemonaut 2024, QuartetAnemoi.
    """
    import torch

    check_models("nearswap", tensors, 1, 1, "leave out the others or choose another method.")
    check_between("t", t, 0.0, math.inf, "it is the furthest that an entry may move.")
    other = tensors[0]
    entry_distance = (base - other).abs_().clamp_(min=SMALLEST_DIFFERENCE)
    other_share = torch.full_like(entry_distance, t).div_(entry_distance).clamp_(max=1.0)
    return other_share * other + (1.0 - other_share) * base


@merge_method("arcee_fusion", reference="https://arcee.ai")
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    """Take from the other model the entries that matter most, and leave the rest at the base.

    Importance of an entry is `|x - base|` times the Kullback-Leibler divergence between its row's
    softmax in `x` and in `base` (rows along the last dimension). Taken is what is at least
    `median + 1.5 * (Q3 - Q1)` of the importances of the tensor.

    Two things differ from mergekit: the quartiles are exact, where it estimates them from a million
    random entries of a larger tensor, and divergences are summed in float64, where in float32 those
    of a fine-tuned model's rows (changes of 0.001 and less) are rounding errors of either sign.

    Args:
        tensors: the one other model's tensor, `[...]`, float32.
        base: base-model tensor, `[...]`, float32.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: there is not exactly one other model.

    Reference:
        Arcee 2024, Arcee Fusion in MergeKit.
    """
    import torch

    check_models("arcee_fusion", tensors, 1, 1, "leave out the others or choose another method.")
    delta = tensors[0] - base
    if base.numel() == 0:
        return base.clone()
    importance = delta.abs() * _divergence(tensors[0], base)
    q1, median, q3 = (
        kth_smallest(importance, int(share * (importance.numel() - 1)) + 1)
        for share in (0.25, 0.5, 0.75)
    )
    threshold = median + 1.5 * (q3 - q1)
    return torch.where(importance >= threshold, delta, 0.0).add_(base)


def _divergence(other: Tensor, base: Tensor) -> Tensor:
    """Divergence of each row's softmax in `other` from that in `base`, `[..., 1]`."""
    import torch

    width = base.shape[-1] if base.dim() > 0 else 1
    x, y = other.reshape(-1, width), base.reshape(-1, width)
    # In blocks of rows, as the softmaxes of a whole embedding in float64 would take eight times its
    # size in 16 bits.
    rows_per_block = max(1, BLOCK // width)
    row_divergences = []
    for start in range(0, len(x), rows_per_block):
        p = x[start : start + rows_per_block].double().softmax(dim=-1).add_(SMALLEST_PROBABILITY)
        q = y[start : start + rows_per_block].double().softmax(dim=-1).add_(SMALLEST_PROBABILITY)
        row_divergences.append((p * (p / q).log()).sum(dim=-1))
    row_shape = (*base.shape[:-1], 1) if base.dim() > 0 else ()
    return torch.cat(row_divergences).reshape(row_shape).to(base.dtype)
