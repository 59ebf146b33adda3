"""Attention of packed documents on a CPU, with a gradient of its own: products of whole tiles.

Legend: N positions of all blocks, K key/value heads, G query heads to each of them, H entries of a
head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolkit.train.fused import no_autocast

_BF16 = torch.bfloat16
TILE = 128
"""Queries whose scores exist at one time; keys after the last of them are never looked at."""


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    edges: Sequence[int],
    heads: tuple[int, int],
    scale: float,
) -> Tensor:
    """Rotated causal attention within each piece of a document, and to nothing outside of it.

    Scores that a mask would throw away are not computed: pieces are taken one by one, and queries
    in tiles that see the keys up to their last. Scores are computed again in the backward pass.

    Args:
        qkv: queries, keys and values side by side, `[N, (K G + 2 K) H]` bfloat16.
        cos, sin: of the rotary embedding, `[N, H]` float32.
        edges: where pieces begin, and N.
        heads: K and G.
        scale: of the scores.

    Returns:
        `[N, K G H]` bfloat16.

    Reference:
        Su et al. 2021, RoFormer; Dao et al. 2022, FlashAttention (recomputation).
    """
    with no_autocast():
        return _Attend.apply(qkv, cos, sin, tuple(edges), heads, scale)  # type: ignore[no-any-return, no-untyped-call]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        edges: tuple[int, ...],
        heads: tuple[int, int],
        scale: float,
    ) -> Tensor:
        queries, keys, values = _by_head(qkv, cos, sin, heads)
        out = torch.empty(qkv.shape[0], *queries.shape[:2], queries.shape[-1], dtype=_BF16)
        with _bfloat16_products():
            for rows, seen in _tiles(edges):
                share = _shares(queries[:, :, rows], keys[:, seen], scale)
                part = torch.bmm(share.to(_BF16), values[:, seen])
                out[rows] = part.view(*queries.shape[:2], -1, queries.shape[-1]).permute(2, 0, 1, 3)
        ctx.save_for_backward(queries, keys, values, cos, sin)
        ctx.edges, ctx.scale = edges, scale
        return out.view(qkv.shape[0], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, cos, sin = ctx.saved_tensors
        kinds, group, _, entries = queries.shape
        grad = grad.view(-1, kinds, group, entries).permute(1, 2, 0, 3)
        grad_queries = torch.empty_like(queries)
        grad_keys = torch.zeros(keys.shape, dtype=torch.float32)
        grad_values = torch.zeros(keys.shape, dtype=torch.float32)
        with _bfloat16_products():
            for rows, seen in _tiles(ctx.edges):
                share = _shares(queries[:, :, rows], keys[:, seen], ctx.scale)
                above = grad[:, :, rows].reshape(kinds, -1, entries)
                grad_values[:, seen] += torch.bmm(share.to(_BF16).transpose(1, 2), above)
                through = torch.bmm(above.float(), values[:, seen].float().transpose(1, 2))
                through = torch.ops.aten._softmax_backward_data(through, share, -1, torch.float32)
                through = through.mul_(ctx.scale).to(_BF16)
                part = torch.bmm(through, keys[:, seen])
                grad_queries[:, :, rows] = part.view(kinds, group, -1, entries)
                asked = queries[:, :, rows].reshape(kinds, -1, entries)
                grad_keys[:, seen] += torch.bmm(through.transpose(1, 2), asked)
        out = torch.empty(keys.shape[1], kinds * (group + 2), entries, dtype=_BF16)
        for head, part in enumerate([*grad_queries.flatten(0, 1), *grad_keys]):
            _rotate(part, cos, -sin, out[:, head])
        out[:, kinds * (group + 1) :] = grad_values.transpose(0, 1)
        return out.view(len(out), -1), None, None, None, None, None


def _by_head(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries `[K, G, N, H]` and keys `[K, N, H]`, and values `[K, N, H]`."""
    kinds, group = heads
    apart = qkv.view(len(qkv), kinds * (group + 2), -1)
    turned = torch.empty(kinds * (group + 1), len(qkv), apart.shape[-1], dtype=_BF16)
    for head, out in enumerate(turned):
        _rotate(apart[:, head], cos, sin, out)
    queries, keys = turned[: kinds * group], turned[kinds * group :]
    values = apart[:, kinds * (group + 1) :].transpose(0, 1).contiguous()
    return queries.view(kinds, group, *queries.shape[1:]), keys, values


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotary embedding of one head, `[N, H]`, in float32 with one cast; -sin turns it back."""
    half = x.shape[-1] // 2
    x = x.float()
    turned = x * cos
    turned[:, :half].addcmul_(x[:, half:], sin[:, :half], value=-1)
    turned[:, half:].addcmul_(x[:, :half], sin[:, half:])
    out.copy_(turned)


def _shares(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """How much each query takes from each key, float32.

    Args:
        queries: `[K, G, R, H]`.
        keys: `[K, S, H]`, of which the last R belong to the queries.

    Returns:
        `[K, G R, S]`; every row adds up to 1.
    """
    kinds, group, count, entries = queries.shape
    flat = queries.reshape(kinds, -1, entries).float()
    scores = torch.bmm(flat, keys.float().transpose(1, 2)).mul_(scale)
    later = torch.full((count, count), float("-inf"), device=keys.device).triu_(1)
    scores.view(kinds, group, count, -1)[..., -count:] += later
    return torch.softmax(scores, -1)


def _tiles(edges: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys they may see.

    >>> list(_tiles([0, 3, 200]))
    [(slice(0, 3, None), slice(0, 3, None)), (slice(3, 131, None), slice(3, 131, None)), \
(slice(131, 200, None), slice(3, 200, None))]
    """
    for first, end in pairwise(edges):
        for start in range(first, end, TILE):
            stop = min(start + TILE, end)
            yield slice(start, stop), slice(first, stop)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Products of float32 tensors that hold bfloat16 values: exact inputs, sums left in float32."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        with no_autocast():
            yield
    finally:
        settings.fp32_precision = before
