"""Attention of packed documents on a CPU, with a gradient of its own: products of whole tiles.

Legend: N positions of all blocks, K key/value heads, G query heads to each of them, H entries of a
head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolkit.train.fused import CACHE_ENTRIES, no_autocast
from toolkit.train.workspace import WORKSPACE

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
        qkv: queries, keys and values side by side, `[N, (K G + 2 K) H]` bfloat16 or float32.
        cos, sin: of the rotary embedding, `[N, H]` float32.
        edges: where pieces begin, and N.
        heads: K and G.
        scale: of the scores.

    Returns:
        `[N, K G H]`, of the type of `qkv`.

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
        # Head by head, so that a tile is one plain matrix: `qkv` has all heads of a position side
        # by side.
        queries, keys, values = _by_head(qkv, cos, sin, heads)
        late_scale = _late_scale(scale, qkv.dtype)
        # Queries are scaled once where that is exact; scores are many times as many.
        if late_scale == 1.0:
            queries.mul_(scale)
        causal_mask = _later(queries.device)
        # What comes next keeps the result until its own backward pass, which is before this one's.
        result_shape = (qkv.shape[0], *queries.shape[:2], queries.shape[-1])
        mixed_heads = WORKSPACE.lend("mixed", result_shape, qkv.dtype, qkv.device)
        with _products_of(qkv.dtype):
            for rows, seen in _tiles(edges):
                attention_shares = _shares(
                    queries[:, :, rows], keys[:, seen], late_scale, causal_mask
                )
                mixed_values = _multiply(attention_shares.to(qkv.dtype), values[:, seen], qkv.dtype)
                mixed_heads[rows] = mixed_values.view(
                    *queries.shape[:2], -1, queries.shape[-1]
                ).permute(2, 0, 1, 3)
        ctx.save_for_backward(queries, keys, values, cos, sin, mixed_heads)
        ctx.edges, ctx.scale = edges, scale
        return mixed_heads.view(qkv.shape[0], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, cos, sin, mixed_heads = ctx.saved_tensors
        kv_heads, group_size, _, head_dim = queries.shape
        grad = grad.view(-1, kv_heads, group_size, head_dim).permute(1, 2, 0, 3)
        # Keys and values get sums over queries of several tiles, in float32: rounded to bfloat16
        # each time, these would lose small terms. A query is in one tile alone.
        grad_queries = torch.empty_like(queries)
        grad_keys = torch.zeros(keys.shape, dtype=torch.float32)
        grad_values = torch.zeros(keys.shape, dtype=torch.float32)
        late_scale, causal_mask = _late_scale(ctx.scale, grad.dtype), _later(queries.device)
        with _products_of(grad.dtype):
            for rows, seen in _tiles(ctx.edges):
                attention_shares = _shares(
                    queries[:, :, rows], keys[:, seen], late_scale, causal_mask
                )
                grad_rows = grad[:, :, rows].reshape(kv_heads, -1, head_dim)
                _add_product(
                    grad_values[:, seen], attention_shares.to(grad.dtype).transpose(1, 2), grad_rows
                )
                values_across = values[:, seen].float().transpose(1, 2)
                grad_scores = _multiply(grad_rows.float(), values_across, grad.dtype)
                # Softmax's backward, (grad - sum(grad * shares)) * shares, without another matrix.
                grad_scores = torch.ops.aten._softmax_backward_data(
                    grad_scores, attention_shares, -1, torch.float32
                )
                if late_scale != 1.0:
                    grad_scores.mul_(late_scale)
                grad_scores = grad_scores.to(grad.dtype)
                # Keys were rotated and queries scaled before they were kept: both is undone at the
                # end.
                grad_part = _multiply(grad_scores, keys[:, seen], grad.dtype)
                grad_queries[:, :, rows] = grad_part.view(kv_heads, group_size, -1, head_dim)
                query_rows = queries[:, :, rows].reshape(kv_heads, -1, head_dim)
                _add_product(grad_keys[:, seen], grad_scores.transpose(1, 2), query_rows)
        if late_scale == 1.0:
            # Gradients of keys have the scale from the scaled queries; those of queries lack it
            # yet.
            grad_queries.mul_(ctx.scale)
        grad_shape = keys.shape[1], kv_heads * (group_size + 2), head_dim
        grad_qkv = WORKSPACE.tensor("gradient of heads", grad_shape, grad.dtype, grad.device)
        negative_sin, grad_by_head = -sin, grad_qkv.transpose(0, 1)
        _rotate(
            grad_queries.flatten(0, 1), cos, negative_sin, grad_by_head[: kv_heads * group_size]
        )
        _rotate(
            grad_keys,
            cos,
            negative_sin,
            grad_by_head[kv_heads * group_size : kv_heads * (group_size + 1)],
        )
        grad_qkv[:, kv_heads * (group_size + 1) :] = grad_values.transpose(0, 1)
        # Both were lent for the block's forward and backward pass; the block below takes them next.
        WORKSPACE.give_back("heads", queries)
        WORKSPACE.give_back("mixed", mixed_heads)
        return grad_qkv.view(len(grad_qkv), -1), None, None, None, None, None


def _by_head(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries `[K, G, N, H]` and keys `[K, N, H]`, and values `[K, N, H]`, all lent."""
    kv_heads, group_size = heads
    heads_apart = qkv.view(len(qkv), kv_heads * (group_size + 2), -1).transpose(0, 1)
    lent = WORKSPACE.lend("heads", tuple(heads_apart.shape), qkv.dtype, qkv.device)
    queries, keys, values = torch.split(lent, [kv_heads * group_size, kv_heads, kv_heads])
    _rotate(
        heads_apart[: kv_heads * (group_size + 1)],
        cos,
        sin,
        lent[: kv_heads * (group_size + 1)],
    )
    values.copy_(heads_apart[kv_heads * (group_size + 1) :])
    return queries.view(kv_heads, group_size, *queries.shape[1:]), keys, values


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotary embedding of several heads, `[K, N, H]`, in float32 with one cast into `out`; -sin
    turns it back."""
    half_dim = x.shape[-1] // 2
    piece_rows = max(1, CACHE_ENTRIES // (x.shape[0] * x.shape[-1]))
    for first_row in range(0, x.shape[1], piece_rows):
        rows = slice(first_row, first_row + piece_rows)
        float_rows, sin_rows = x[:, rows].float(), sin[rows]
        rotated_rows = float_rows * cos[rows]
        rotated_rows[..., :half_dim].addcmul_(
            float_rows[..., half_dim:], sin_rows[:, :half_dim], value=-1
        )
        rotated_rows[..., half_dim:].addcmul_(float_rows[..., :half_dim], sin_rows[:, half_dim:])
        out[:, rows] = rotated_rows


def _late_scale(scale: float, dtype: torch.dtype) -> float:
    """What scores are to be multiplied by; 1 where queries are instead, of which there are fewer.

    In bfloat16 that would round queries once more, unless the scale is a power of two.

    >>> _late_scale(0.125, torch.bfloat16), _late_scale(0.1, torch.bfloat16)
    (1.0, 0.1)
    """
    return 1.0 if dtype == torch.float32 or math.frexp(scale)[0] == 0.5 else scale


def _later(device: torch.device) -> Tensor:
    """What keeps the queries of a tile from the keys after them, `[TILE, TILE]`."""
    return torch.full((TILE, TILE), float("-inf"), device=device).triu_(1)


def _multiply(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """Products matrix by matrix, `[K, R, S]` times `[K, S, H]`.

    Where `dtype`, in which all values are, is float32, all threads share each of them: `bmm` would
    give whole matrices to threads, and K is seldom a multiple of those.
    """
    if dtype != torch.float32:
        return torch.bmm(one, other)
    out = torch.empty(*one.shape[:2], other.shape[-1], device=one.device)
    for left, right, place in zip(one, other, out, strict=True):
        torch.mm(left, right, out=place)
    return out


def _add_product(out: Tensor, one: Tensor, other: Tensor) -> None:
    """Add products to `out`, `[K, R, H]` float32."""
    if one.dtype != torch.float32:
        out += torch.bmm(one, other)
        return
    for left, right, place in zip(one, other, out, strict=True):
        place.addmm_(left, right)


def _shares(queries: Tensor, keys: Tensor, scale: float, causal_mask: Tensor) -> Tensor:
    """How much each query takes from each key, float32.

    Args:
        queries: `[K, G, R, H]`.
        keys: `[K, S, H]`, of which the last R belong to the queries.
        scale: of the scores.
        causal_mask: mask from `_later`.

    Returns:
        `[K, G R, S]`; every row adds up to 1.
    """
    kv_heads, group_size, num_queries, head_dim = queries.shape
    flat_queries = queries.reshape(kv_heads, -1, head_dim).float()
    scores = _multiply(flat_queries, keys.float().transpose(1, 2), queries.dtype)
    if scale != 1.0:
        scores.mul_(scale)
    scores.view(kv_heads, group_size, num_queries, -1)[..., -num_queries:].add_(
        causal_mask[:num_queries, :num_queries]
    )
    return torch.softmax(scores, -1)


def _tiles(edges: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys they may see.

    >>> list(_tiles([0, 3, 200]))
    [(slice(0, 3, None), slice(0, 3, None)), (slice(3, 131, None), slice(3, 131, None)), \
(slice(131, 200, None), slice(3, 200, None))]
    """
    for piece_start, piece_end in pairwise(edges):
        for tile_start in range(piece_start, piece_end, TILE):
            tile_stop = min(tile_start + TILE, piece_end)
            yield slice(tile_start, tile_stop), slice(piece_start, tile_stop)


@contextmanager
def _products_of(dtype: torch.dtype) -> Iterator[None]:
    """Products of float32 tensors that hold values of `dtype`: those of bfloat16 are exact inputs
    with sums left in float32."""
    if dtype != torch.bfloat16:
        with no_autocast():
            yield
        return
    matmul_settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    precision_before = matmul_settings.fp32_precision
    matmul_settings.fp32_precision = "bf16"
    try:
        with no_autocast():
            yield
    finally:
        matmul_settings.fp32_precision = precision_before
