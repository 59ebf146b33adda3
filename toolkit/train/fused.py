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
        inverse_rms = None
        y = x
        if scale is not None:
            inverse_rms = _inverse_rms(x, epsilon)
            y = _normed(x, inverse_rms, scale, dtype)
        stacked_weights = _beside(weights, dtype)
        out = y @ stacked_weights.T if place is None else _multiply(place, y, stacked_weights.T)
        first_column = 0
        for weight, bias in zip(weights, biases, strict=True):
            if bias is not None:
                out[:, first_column : first_column + len(weight)].add_(bias)
            first_column += len(weight)
        # The float32 parameters, which stay in memory anyway, and not their casts: casting again
        # takes less than keeping one for every block would.
        ctx.save_for_backward(x, scale, inverse_rms, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse_rms, *weights = ctx.saved_tensors
        needs_gradient = ctx.needs_input_grad[6:]
        # Computed again from what was kept of it, one number a row: the normed rows themselves are
        # as large as x.
        y = x if scale is None else _normed(x, inverse_rms, scale, grad.dtype)
        weight_grads = _matrix_gradients(grad, y, weights, needs_gradient)
        first_column = 0
        for number, weight in enumerate(weights):
            grad_columns = grad[:, first_column : first_column + len(weight)]
            bias_learns = needs_gradient[len(weights) + number]
            weight_grads.append(grad_columns.sum(0, dtype=torch.float32) if bias_learns else None)
            first_column += len(weight)
        stacked_weights = _beside(weights, grad.dtype)
        if scale is None:
            grad_x = _multiply("gradient of results", grad, stacked_weights)
            return grad_x, None, None, None, None, None, *weight_grads
        grad_y = _multiply("gradient", grad, stacked_weights)
        grad_x, grad_scale = _norm_gradients(grad_y, x, inverse_rms, scale)
        return grad_x, grad_scale, None, None, None, None, *weight_grads


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
        inverse_rms = _inverse_rms(x, epsilon)
        both_products = WORKSPACE.lend("gated", (len(x), len(gate) + len(up)), dtype, x.device)
        torch.mm(
            _normed(x, inverse_rms, scale, dtype), _beside((gate, up), dtype).T, out=both_products
        )
        ctx.save_for_backward(x, scale, inverse_rms, both_products, gate, up, down)
        gate_product, up_product = both_products.chunk(2, dim=1)
        product = WORKSPACE.tensor("product", tuple(gate_product.shape), dtype, x.device)
        for rows in _pieces(gate_product):
            torch.mul(
                torch.nn.functional.silu(gate_product[rows]), up_product[rows], out=product[rows]
            )
        return _multiply("result", product, _beside([down], dtype).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse_rms, both_products, gate, up, down = ctx.saved_tensors
        gate_product, up_product = both_products.chunk(2, dim=1)
        # The place of the forward pass's product, which is done with, takes the gradient of the
        # product; piece by piece the loop turns that into the product itself, for the gradient of
        # `down`.
        product = _multiply("product", grad, _beside([down], grad.dtype))
        for rows in _pieces(gate_product):
            grad_rows, gate_rows = product[rows], torch.nn.functional.silu(gate_product[rows])
            grad_gate, grad_raised = grad_rows * up_product[rows], grad_rows * gate_rows
            torch.mul(gate_rows, up_product[rows], out=grad_rows)
            # Gradients take the place of what they are gradients of: less goes through memory, and
            # autograd refuses a second backward pass, as it sees that what it kept has changed.
            torch.ops.aten.silu_backward(
                grad_gate, gate_product[rows], grad_input=gate_product[rows]
            )
            up_product[rows] = grad_raised
        *needs_gradient, wants_down = ctx.needs_input_grad[4:]
        (grad_down,) = _matrix_gradients(grad, product, [down], [wants_down])
        y = _normed(x, inverse_rms, scale, grad.dtype)
        weight_grads = _matrix_gradients(both_products, y, [gate, up], needs_gradient)
        grad_x = _multiply("gradient", both_products, _beside((gate, up), grad.dtype))
        # After its last reader, and before the block below asks for as much.
        WORKSPACE.give_back("gated", both_products)
        grad_x, grad_scale = _norm_gradients(grad_x, x, inverse_rms, scale)
        return grad_x, grad_scale, None, None, *weight_grads, grad_down


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """One over the root mean square of each row, `[N, 1]`."""
    inverse_rms = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    for rows in _pieces(x):
        inverse_rms[rows] = torch.rsqrt(x[rows].pow(2).mean(-1, keepdim=True) + epsilon)
    return inverse_rms


def _normed(x: Tensor, inverse: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`[N, D]` float32 to `dtype`, with one cast, in the workspace."""
    normed_rows = WORKSPACE.tensor("normed", tuple(x.shape), dtype, x.device)
    for rows in _pieces(x):
        normed_rows[rows] = (x[rows] * inverse[rows]).mul_(scale)
    return normed_rows


def _norm_gradients(
    grad: Tensor, x: Tensor, inverse: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Of `x`, `[N, D]`, and of the norm's weight, `[D]`, both float32."""
    grad_x = torch.empty_like(x)
    grad_scale = torch.zeros_like(scale)
    for rows in _pieces(x):
        grad_rows, unit_rows = grad[rows].float(), x[rows] * inverse[rows]
        grad_scale += (grad_rows * unit_rows).sum(0)
        # The gradient through x / rms(x): what goes along with x itself cannot change a normed row.
        grad_rows.mul_(scale)
        unit_rows.mul_((grad_rows * unit_rows).mean(-1, keepdim=True))
        torch.mul(grad_rows.sub_(unit_rows), inverse[rows], out=grad_x[rows])
    return grad_x, grad_scale


def _matrix_gradients(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Of matrices whose products stand side by side: of the products' type, as autocast has it."""
    weight_grads: list[Tensor | None] = []
    first_column = 0
    for weight, learns in zip(weights, wanted[: len(weights)], strict=True):
        grad_columns = grad[:, first_column : first_column + len(weight)]
        if not learns:
            weight_grads.append(None)
        elif x.dtype == torch.float32:
            # It stays as the parameter's gradient, so it is not in the workspace.
            # One product for each matrix, not one for all: the result of each is kept by its own
            # parameter.
            weight_grads.append(grad_columns.T @ x)
        else:
            weight_grads.append(_multiply("matrix", grad_columns.T, x).float())
        first_column += len(weight)
    return weight_grads


def _beside(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices one below the other, in the workspace. A single one is not copied where it has the
    type; several are, as one product of them all takes less time than the copy and a product of
    each."""
    if len(weights) == 1 and weights[0].dtype == dtype:
        return weights[0]
    shape = sum(len(weight) for weight in weights), weights[0].shape[1]
    stacked_weights = WORKSPACE.tensor("matrices", shape, dtype, weights[0].device)
    first_row = 0
    for weight in weights:
        stacked_weights[first_row : first_row + len(weight)] = weight
        first_row += len(weight)
    return stacked_weights


def _multiply(name: str, one: Tensor, other: Tensor) -> Tensor:
    """A product of matrices in the workspace."""
    shape = one.shape[0], other.shape[1]
    return torch.mm(one, other, out=WORKSPACE.tensor(name, shape, one.dtype, one.device))


def _pieces(x: Tensor) -> Iterator[slice]:
    piece_rows = max(1, CACHE_ENTRIES // x.shape[-1])
    for first_row in range(0, x.shape[0], piece_rows):
        yield slice(first_row, first_row + piece_rows)


def no_autocast() -> Any:
    """Types are as they are given."""
    # Fused blocks run on CPUs only (`may_fuse`).
    return torch.autocast("cpu", enabled=False)
