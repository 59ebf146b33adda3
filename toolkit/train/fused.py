"""Products of a block with gradients of their own: fewer passes over memory, fewer results kept.

autocast casts every activation for every product, and autograd keeps what each small operation
needs. Here products take one type as it is (bfloat16, or float32 where a processor has nothing
faster), element-wise work goes through the cache in pieces, and what is cheap is computed again in
the backward pass. Parameters, the stream between blocks and norms are float32.

Legend: N positions of all blocks, D hidden size, W width of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolkit.train.workspace import WORKSPACE

CACHE_ENTRIES = 128 * 1024
"""Entries of an activation that element-wise work goes through at one time."""


def project(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm: tuple[Tensor, float] | None = None,
    *,
    dtype: torch.dtype,
    place: str | None = None,
) -> Tensor:
    """Products of one activation with several matrices, side by side, after a norm if one is given.

    Args:
        x: `[N, D]`, float32 where it is to be normed, else of `dtype`.
        weights: `[W_i, D]` float32.
        biases: `[W_i]` float32, or none.
        norm: weight `[D]` and epsilon of a root-mean-square norm, whose result is not kept.
        dtype: of the products, bfloat16 or float32.
        place: name in the workspace for a result that whatever comes next does not keep.

    Returns:
        `[N, W]` of `dtype`.

    Reference:
        Zhang & Sennrich 2019, Root mean square layer normalization.
    """
    scale, epsilon = norm or (None, 0.0)
    with no_autocast():
        return _Project.apply(x, scale, epsilon, dtype, place, len(weights), *weights, *biases)  # type: ignore[no-any-return, no-untyped-call]


def gated(
    x: Tensor,
    norm: tuple[Tensor, float],
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """A gated block: `(silu(y @ gate.T) * (y @ up.T)) @ down.T` of the normed `y`; of what lies
    between, the first two products are kept. The result is in the workspace, for a sum that does
    not keep it.

    Args:
        x: `[N, D]` float32.
        norm: weight `[D]` and epsilon.
        gate, up: `[W, D]` float32.
        down: `[D, W]` float32.
        dtype: of the products, bfloat16 or float32.

    Returns:
        `[N, D]` of `dtype`.

    Reference:
        Shazeer 2020, GLU variants improve transformer.
    """
    with no_autocast():
        return _Gated.apply(x, *norm, dtype, gate, up, down)  # type: ignore[no-any-return, no-untyped-call]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
        place: str | None,
        count: int,
        *given: Any,
    ) -> Tensor:
        weights, biases = given[:count], given[count:]
        inverse = None
        y = x
        if scale is not None:
            inverse = _inverse_rms(x, epsilon)
            y = _normed(x, inverse, scale, dtype)
        matrix = _beside(weights, dtype)
        out = y @ matrix.T if place is None else _multiply(place, y, matrix.T)
        start = 0
        for weight, bias in zip(weights, biases, strict=True):
            if bias is not None:
                out[:, start : start + len(weight)].add_(bias)
            start += len(weight)
        ctx.save_for_backward(x, scale, inverse, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[6:]
        y = x if scale is None else _normed(x, inverse, scale, grad.dtype)
        grads = _matrix_gradients(grad, y, weights, wanted)
        start = 0
        for number, weight in enumerate(weights):
            part = grad[:, start : start + len(weight)]
            learns = wanted[len(weights) + number]
            grads.append(part.sum(0, dtype=torch.float32) if learns else None)
            start += len(weight)
        matrix = _beside(weights, grad.dtype)
        if scale is None:
            grad_x = _multiply("gradient of results", grad, matrix)
            return grad_x, None, None, None, None, None, *grads
        grad_y = _multiply("gradient", grad, matrix)
        return *_norm_gradients(grad_y, x, inverse, scale), None, None, None, None, *grads


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        epsilon: float,
        dtype: torch.dtype,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
    ) -> Tensor:
        inverse = _inverse_rms(x, epsilon)
        ctx.loan = WORKSPACE.lend("gated", (len(x), len(gate) + len(up)), dtype, x.device)
        both = ctx.loan.tensor
        torch.mm(_normed(x, inverse, scale, dtype), _beside((gate, up), dtype).T, out=both)
        ctx.save_for_backward(x, scale, inverse, both, gate, up, down)
        opened, raised = both.chunk(2, dim=1)
        product = WORKSPACE.tensor("product", tuple(opened.shape), dtype, x.device)
        for rows in _pieces(opened):
            torch.mul(torch.nn.functional.silu(opened[rows]), raised[rows], out=product[rows])
        return _multiply("result", product, _beside([down], dtype).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse, both, gate, up, down = ctx.saved_tensors
        opened, raised = both.chunk(2, dim=1)
        # Its gradient first, then itself in the same place.
        product = _multiply("product", grad, _beside([down], grad.dtype))
        for rows in _pieces(opened):
            above, turned = product[rows], torch.nn.functional.silu(opened[rows])
            through, grad_raised = above * raised[rows], above * turned
            torch.mul(turned, raised[rows], out=above)
            # Gradients take the place of what they are gradients of: less goes through memory, and
            # autograd refuses a second backward pass, as it sees that what it kept has changed.
            torch.ops.aten.silu_backward(through, opened[rows], grad_input=opened[rows])
            raised[rows] = grad_raised
        *wanted, wants_down = ctx.needs_input_grad[4:]
        (grad_down,) = _matrix_gradients(grad, product, [down], [wants_down])
        y = _normed(x, inverse, scale, grad.dtype)
        grads = _matrix_gradients(both, y, [gate, up], wanted)
        grad_x = _multiply("gradient", both, _beside((gate, up), grad.dtype))
        WORKSPACE.give_back(ctx.loan)
        grad_x, grad_scale = _norm_gradients(grad_x, x, inverse, scale)
        return grad_x, grad_scale, None, None, *grads, grad_down


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """One over the root mean square of each row, `[N, 1]`."""
    out = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    for rows in _pieces(x):
        out[rows] = torch.rsqrt(x[rows].pow(2).mean(-1, keepdim=True) + epsilon)
    return out


def _normed(x: Tensor, inverse: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`[N, D]` float32 to `dtype`, with one cast, in the workspace."""
    out = WORKSPACE.tensor("normed", tuple(x.shape), dtype, x.device)
    for rows in _pieces(x):
        out[rows] = (x[rows] * inverse[rows]).mul_(scale)
    return out


def _norm_gradients(
    grad: Tensor, x: Tensor, inverse: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Of `x`, `[N, D]`, and of the norm's weight, `[D]`, both float32."""
    out = torch.empty_like(x)
    grad_scale = torch.zeros_like(scale)
    for rows in _pieces(x):
        above, unit = grad[rows].float(), x[rows] * inverse[rows]
        grad_scale += (above * unit).sum(0)
        above.mul_(scale)
        unit.mul_((above * unit).mean(-1, keepdim=True))
        torch.mul(above.sub_(unit), inverse[rows], out=out[rows])
    return out, grad_scale


def _matrix_gradients(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Of matrices whose products stand side by side: of the products' type, as autocast has it."""
    found: list[Tensor | None] = []
    start = 0
    for weight, learns in zip(weights, wanted[: len(weights)], strict=True):
        part = grad[:, start : start + len(weight)]
        if not learns:
            found.append(None)
        elif x.dtype == torch.float32:
            found.append(part.T @ x)  # it stays as the parameter's gradient: not in the workspace
        else:
            found.append(_multiply("matrix", part.T, x).float())
        start += len(weight)
    return found


def _beside(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices one below the other, in the workspace. A single one is not copied where it has the
    type; several are, as one product of them all takes less time than the copy and a product of
    each."""
    if len(weights) == 1 and weights[0].dtype == dtype:
        return weights[0]
    shape = sum(len(weight) for weight in weights), weights[0].shape[1]
    out = WORKSPACE.tensor("matrices", shape, dtype, weights[0].device)
    start = 0
    for weight in weights:
        out[start : start + len(weight)] = weight
        start += len(weight)
    return out


def _multiply(name: str, one: Tensor, other: Tensor) -> Tensor:
    """A product of matrices in the workspace."""
    shape = one.shape[0], other.shape[1]
    return torch.mm(one, other, out=WORKSPACE.tensor(name, shape, one.dtype, one.device))


def _pieces(x: Tensor) -> Iterator[slice]:
    size = max(1, CACHE_ENTRIES // x.shape[-1])
    for start in range(0, x.shape[0], size):
        yield slice(start, start + size)


def no_autocast() -> Any:
    """Types are as they are given."""
    return torch.autocast("cpu", enabled=False)
