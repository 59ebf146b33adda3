"""Lengths and angles of tensors, each seen as one long vector.

The spherical methods and Model Stock are sums `sum(c_m * x_m)` whose few coefficients follow from
the tensors' inner products. Those are summed in float64, block by block; the float32 arithmetic on
the tensors is one weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


BLOCK = 1 << 20
"""Entries that are held in float64 at a time."""


def inner_products(tensors: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """Inner product of every two tensors, less `base` where it is given.

    Args:
        tensors: `[...]` each, of one shape.
        base: `[...]`, or None.

    Returns:
        Gram matrix, `[M, M]`, float64, on the CPU.

    >>> import torch
    >>> inner_products([torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])])
    tensor([[25.,  3.],
            [ 3.,  1.]], dtype=torch.float64)
    """
    import torch

    flat = [tensor.flatten() for tensor in tensors]
    flat_base = base.flatten() if base is not None else None
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat[0].device)
    for start in range(0, flat[0].numel(), BLOCK):
        block_rows = torch.stack([vector[start : start + BLOCK].double() for vector in flat])
        if flat_base is not None:
            block_rows -= flat_base[start : start + BLOCK].double()
        gram += block_rows @ block_rows.T
    return gram.cpu()


def combination(
    tensors: Sequence[Tensor], coefficients: Sequence[float], base: Tensor | None = None
) -> Tensor:
    """`sum(c_m * x_m)`, or `base + sum(c_m * (x_m - base))` where a base is given."""
    import torch

    merged = torch.zeros_like(tensors[0])
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        merged.add_(tensor if base is None else tensor - base, alpha=coefficient)
    return merged if base is None else merged.add_(base)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors; 1 where either is zero and has no direction."""
    gram = inner_products([a, b])
    norm_product = float(gram[0, 0].sqrt()) * float(gram[1, 1].sqrt())
    return max(-1.0, min(1.0, float(gram[0, 1]) / norm_product)) if norm_product > 0.0 else 1.0
