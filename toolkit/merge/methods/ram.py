"""RAM: entries that one model alone changed are kept whole, shared ones are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.checks import check_between
from toolkit.merge.methods.task_vectors import task_vectors
from toolkit.merge.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("ram", reference="https://arxiv.org/abs/2601.13572", elementwise=True)
def ram(tensors: Sequence[Tensor], base: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Average each entry over the models that changed it: `base + sum_A(d_m) / |A|`.

    `A` are the models with `|d_m| > epsilon`; where there is none, the base stays.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        epsilon: largest change that counts as none, at least 0.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: `epsilon` is negative.

    Reference:
        Reinforced Agent Merging, 2026.
    """
    changes, changer_count = _changes(tensors, base, epsilon)
    return _join(base, changes, changer_count, [1.0] * len(changes))


@merge_method("ramplus_tl", reference="https://arxiv.org/abs/2601.13572")
def ramplus_tl(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-5,
) -> Tensor:
    """`ram`, with entries that one model alone changed scaled up to make up for the averaging.

    Those are multiplied by `1 + r * min(shared / unique, alpha)`, where `shared` and `unique` count
    the entries of this tensor that the model changed together with others and alone.

    Args:
        tensors: tuned tensors, `[...]` each, float32, in file order.
        base: base-model tensor, `[...]`, float32.
        r: strength of the scaling.
        alpha: largest ratio that counts, at least 0.
        epsilon: largest change that counts as none, at least 0.

    Returns:
        Merged tensor, `[...]`, float32.

    Raises:
        MergeError: `epsilon` or `alpha` is negative.

    Reference:
        Reinforced Agent Merging, 2026 (RAM+, tensor-local).
    """
    check_between("alpha", alpha, 0.0, math.inf, "it is the largest ratio that counts.")
    changes, changer_count = _changes(tensors, base, epsilon)
    model_scales = []
    for change in changes:
        shared_entries = int(((change != 0) & (changer_count > 1)).sum())
        unique = int(((change != 0) & (changer_count == 1)).sum())
        model_scales.append(1.0 + r * min(shared_entries / unique, alpha) if unique > 0 else 1.0)
    return _join(base, changes, changer_count, model_scales)


def _join(
    base: Tensor, changes: Sequence[Tensor], changer_count: Tensor, scales: Sequence[float]
) -> Tensor:
    """Base plus changes: those made alone times the model's scale, those shared averaged."""
    import torch

    merged = torch.zeros_like(base)
    for change, scale in zip(changes, scales, strict=True):
        merged.add_(torch.where(changer_count > 1, change / changer_count, change * scale))
    return merged.add_(base)


def _changes(
    tensors: Sequence[Tensor], base: Tensor, epsilon: float
) -> tuple[list[Tensor], Tensor]:
    """Task vectors without changes up to `epsilon`, and how many models changed each entry."""
    import torch

    check_between("epsilon", epsilon, 0.0, math.inf, "it is the largest change that is ignored.")
    changes = [
        torch.where(delta.abs() > epsilon, delta, 0.0) for delta in task_vectors(tensors, base)
    ]
    # Changes up to epsilon are exact zeros by now.
    changer_count = torch.stack([change != 0 for change in changes]).sum(dim=0)
    return changes, changer_count
