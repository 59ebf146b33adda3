"""Parts of a decoder block with gradients of their own: fewer passes over memory, fewer results kept.

autocast casts every activation for every product, and autograd keeps what each small operation
needs. Here products take bfloat16 as it is, element-wise work goes through the cache in pieces, and
what is cheap is computed again in the backward pass. Parameters, the stream between blocks, norms,
scores and softmax are float32.

Legend: N positions of all blocks, D hidden size, W widths of several products side by side,
K key/value heads, G query heads to each of them, H entries of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BF16 = torch.bfloat16
_CACHE_ENTRIES = 128 * 1024
"""Entries of an activation that element-wise work goes through at one time."""

_TILE = 128
"""Queries whose scores exist at one time; keys after the last of them are never looked at."""


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm, `[..., D]` float32 to bfloat16.

    Reference:
        Zhang & Sennrich 2019, Root mean square layer normalization.
    """
    with _no_autocast():
        return _Norm.apply(x, weight, epsilon)  # type: ignore[no-any-return, no-untyped-call]


def project(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """Products of one activation with several matrices, side by side.

    Args:
        x: `[N, D]` bfloat16.
        weights: `[W_i, D]` float32.
        biases: `[W_i]` float32, or none.

    Returns:
        `[N, W]` bfloat16.
    """
    with _no_autocast():
        return _Project.apply(x, len(weights), *weights, *biases)  # type: ignore[no-any-return, no-untyped-call]


def gated(both: Tensor, down: Tensor) -> Tensor:
    """The end of a gated block: `(silu(gate) * up) @ down.T`; the gated product is not kept.

    Args:
        both: gate and up side by side, `[N, 2 W]` bfloat16.
        down: `[D, W]` float32.

    Reference:
        Shazeer 2020, GLU variants improve transformer.
    """
    with _no_autocast():
        return _Gated.apply(both, down)  # type: ignore[no-any-return, no-untyped-call]


def attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, edges: Sequence[int], heads: tuple[int, int], scale: float
) -> Tensor:
    """Rotated causal attention within each piece of a document, and to nothing outside of it.

    Scores that a mask would throw away are not computed: pieces are taken one by one, and queries in
    tiles that see the keys up to their last. Scores are recomputed in the backward pass.

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
    with _no_autocast():
        return _Attend.apply(qkv, cos, sin, tuple(edges), heads, scale)  # type: ignore[no-any-return, no-untyped-call]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty(flat.shape, dtype=_BF16, device=x.device)
        scales = torch.empty(flat.shape[0], 1, dtype=torch.float32, device=x.device)
        for rows in _pieces(flat):
            part = flat[rows]
            scales[rows] = torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + epsilon)
            out[rows] = (part * scales[rows]).mul_(weight)
        ctx.save_for_backward(flat, weight, scales)
        ctx.shape = x.shape
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, scales = ctx.saved_tensors
        grad = grad.reshape(flat.shape)
        out = torch.empty_like(flat)
        grad_weight = torch.zeros_like(weight)
        for rows in _pieces(flat):
            g, unit = grad[rows].float(), flat[rows] * scales[rows]
            grad_weight += (g * unit).sum(0)
            g.mul_(weight)
            unit.mul_((g * unit).mean(-1, keepdim=True))
            torch.mul(g.sub_(unit), scales[rows], out=out[rows])
        return out.view(ctx.shape), grad_weight, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *given: Tensor | None) -> Tensor:
        weights, biases = given[:count], given[count:]
        out = x @ _beside(weights, x).T
        start = 0
        for weight, bias in zip(weights, biases, strict=True):
            assert weight is not None
            if bias is not None:
                out[:, start : start + len(weight)] += bias
            start += len(weight)
        ctx.save_for_backward(x, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        grad_x = grad @ _beside(weights, x) if ctx.needs_input_grad[0] else None
        grad_weights: list[Tensor | None] = []
        grad_biases: list[Tensor | None] = []
        start = 0
        for number, weight in enumerate(weights):
            part = grad[:, start : start + len(weight)]
            grad_weights.append((part.T @ x).float() if wanted[number] else None)
            learns = wanted[len(weights) + number]
            grad_biases.append(part.sum(0, dtype=torch.float32) if learns else None)
            start += len(weight)
        return grad_x, None, *grad_weights, *grad_biases


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(both, down)
        gate, up = both.chunk(2, dim=1)
        product = torch.empty(gate.shape, dtype=both.dtype, device=both.device)
        for rows in _pieces(gate):
            torch.mul(torch.nn.functional.silu(gate[rows]), up[rows], out=product[rows])
        return product @ down.to(both.dtype).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        both, down = ctx.saved_tensors
        gate, up = both.chunk(2, dim=1)
        product = grad @ down.to(both.dtype)  # its gradient first, then itself in the same place
        grad_both = torch.empty_like(both)
        grad_gate, grad_up = grad_both.chunk(2, dim=1)
        for rows in _pieces(gate):
            g, turned = product[rows], torch.nn.functional.silu(gate[rows])
            torch.mul(g, turned, out=grad_up[rows])
            grad_gate[rows] = torch.ops.aten.silu_backward(g * up[rows], gate[rows])
            torch.mul(turned, up[rows], out=product[rows])
        grad_down = (grad.T @ product).float() if ctx.needs_input_grad[1] else None
        return grad_both, grad_down


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
    queries, keys = turned.split([kinds * group, kinds])
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
    later = torch.ones(count, count, dtype=torch.bool, device=keys.device).triu_(1)
    scores.view(kinds, group, count, -1)[..., -count:].masked_fill_(later, float("-inf"))
    return torch.softmax(scores, -1)


def _tiles(edges: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys they may see.

    >>> list(_tiles([0, 3, 200]))
    [(slice(0, 3, None), slice(0, 3, None)), (slice(3, 131, None), slice(3, 131, None)), \
(slice(131, 200, None), slice(3, 200, None))]
    """
    for first, end in pairwise(edges):
        for start in range(first, end, _TILE):
            stop = min(start + _TILE, end)
            yield slice(start, stop), slice(first, stop)


def _beside(weights: Sequence[Any], like: Tensor) -> Tensor:
    """Matrices one below the other, in the type of an activation."""
    if len(weights) == 1:
        return weights[0].to(like.dtype)  # type: ignore[no-any-return]
    rows = sum(len(weight) for weight in weights)
    out = torch.empty(rows, weights[0].shape[1], dtype=like.dtype, device=like.device)
    start = 0
    for weight in weights:
        out[start : start + len(weight)] = weight
        start += len(weight)
    return out


def _pieces(x: Tensor) -> Iterator[slice]:
    size = max(1, _CACHE_ENTRIES // x.shape[-1])
    for start in range(0, x.shape[0], size):
        yield slice(start, start + size)


def _no_autocast() -> Any:
    return torch.autocast("cpu", enabled=False)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Products of float32 tensors that hold bfloat16 values: exact inputs, sums left in float32."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        with _no_autocast():
            yield
    finally:
        settings.fp32_precision = before
