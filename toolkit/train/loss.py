"""Losses over a large vocabulary, with their gradients, without keeping the logits.

Legend: N positions, D hidden size, V vocabulary, K tokens kept of a distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.forward import divergence
from toolkit.train.tied import SharedGradient
from toolkit.train.workspace import WORKSPACE

CHUNK_ROWS = 512
"""Positions whose logits exist at one time; bounds memory at CHUNK_ROWS x V entries."""

HEAD_ROWS = 8192
"""Tokens whose gradient is computed at one time; bounds memory beside the gradient itself."""

_CACHE_ROWS = 32
"""Positions whose float32 softmax is computed at one time, so that it stays in the cache."""

_LEAST_LOG = -100.0
"""Log probability below which none is taken: where float32 has underflowed to nothing, a divergence
in reverse would be infinite."""

LossRule = Callable[[Tensor, slice], Tensor]
"""Given logits `[n, V]` of some positions, which it overwrites by their gradient, and which
positions these are; returns their losses, `[n]` float32."""


@dataclass(frozen=True)
class TeacherDistributions:
    """What another model thinks of the next token, at some positions.

    Attributes:
        top_tokens: its likeliest tokens, `[N, K]` int64.
        top_logs: their log probabilities, `[N, K]` float32.
        rest_logs: log probability of all others together, `[N]` float32.
    """

    top_tokens: Tensor
    top_logs: Tensor
    rest_logs: Tensor

    def at(self, positions: Tensor | slice) -> TeacherDistributions:
        """Those of some positions."""
        return TeacherDistributions(
            self.top_tokens[positions], self.top_logs[positions], self.rest_logs[positions]
        )

    def to(self, device: torch.device) -> TeacherDistributions:
        """The same on a device."""
        return TeacherDistributions(
            self.top_tokens.to(device), self.top_logs.to(device), self.rest_logs.to(device)
        )


class _LinearLoss(torch.autograd.Function):
    """Output projection and a loss in one: logits become their own gradient in place.

    PyTorch's own two steps keep several [N, V] float32 tensors; on 2 CPU cores they take 1.3 times
    as long (dev/LOG.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        rule: LossRule,
        dtype: torch.dtype,
        shared: SharedGradient | None,
    ) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad)
        rounded_hidden, rounded_head = hidden.to(dtype), head
        if head.dtype != dtype:
            head_place = WORKSPACE.tensor("head", tuple(head.shape), dtype, head.device)
            rounded_head = head_place.copy_(head)
        # In float64: a step sums the losses of a hundred thousand targets.
        total_loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None
        head_learns = ctx.needs_input_grad[1]
        grad_head = torch.zeros_like(head, dtype=torch.float32) if head_learns else None
        logits_shape = min(CHUNK_ROWS, len(rounded_hidden)), len(rounded_head)
        logits_place = WORKSPACE.tensor("logits", logits_shape, dtype, hidden.device)
        for first_row in range(0, rounded_hidden.shape[0], CHUNK_ROWS):
            rows = slice(first_row, first_row + CHUNK_ROWS)
            chunk = rounded_hidden[rows]
            logits = torch.mm(chunk, rounded_head.T, out=logits_place[: len(chunk)])
            # From here on `logits` holds their gradient: nothing as large is ever made beside it.
            total_loss += rule(logits, rows).sum(dtype=torch.float64)
            if grad_hidden is not None:
                grad_hidden[rows] = (logits @ rounded_head).to(hidden.dtype)
            if grad_head is not None and dtype == grad_head.dtype:
                # All float32: the product is added up in place, without a result of its own
                # between.
                grad_head.addmm_(logits.T, chunk)
            elif grad_head is not None:
                # Products are of `dtype`, their sum over chunks is float32: so it goes in pieces.
                for first_token in range(0, len(rounded_head), HEAD_ROWS):
                    token_range = slice(first_token, first_token + HEAD_ROWS)
                    product_shape = len(rounded_head[token_range]), hidden.shape[1]
                    product = WORKSPACE.tensor("matrix", product_shape, dtype, hidden.device)
                    torch.mm(logits[:, token_range].T, chunk, out=product)
                    grad_head[token_range].add_(product)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.head_dtype, ctx.shared = head.dtype, shared
        return total_loss.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        if grad_head is None:
            return grad_hidden * grads[0], None, None, None, None
        # In place: both are ours alone, and the larger is as large as the vocabulary.
        grad_hidden, grad_head = grad_hidden.mul_(grads[0]), grad_head.mul_(grads[0])
        if ctx.shared is not None:
            # The embedding's backward pass comes last: it adds its few rows and returns one
            # gradient.
            ctx.shared.value = grad_head
            return grad_hidden, None, None, None, None
        return grad_hidden, grad_head.to(ctx.head_dtype), None, None, None


def _losses_to_gradients(labels: Tensor, logits: Tensor, rows: slice) -> Tensor:
    """Losses `[N]` in float32; `logits` `[N, V]` are overwritten by softmax minus one-hot."""
    labels = labels[rows]
    losses = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
    chunk_rows = _CACHE_ROWS if logits.device.type == "cpu" else max(1, logits.shape[0])
    for first_row in range(0, logits.shape[0], chunk_rows):
        part = slice(first_row, first_row + chunk_rows)
        z, y = logits[part].float(), labels[part, None]
        # Subtracting the largest logit first, so that exp never overflows; it is added again in the
        # loss.
        top_logits = z.amax(dim=1, keepdim=True)
        target_logits = z.gather(1, y)
        exp_sums = z.sub_(top_logits).exp_().sum(dim=1, keepdim=True)
        losses[part] = (exp_sums.log() + top_logits - target_logits)[:, 0]
        # softmax - one-hot, in the place of the logits.
        z.div_(exp_sums).scatter_add_(1, y, torch.full_like(target_logits, -1.0))
        if logits.dtype != z.dtype:  # else it is that very place
            logits[part] = z
    return losses


def _divergences_to_gradients(
    teacher: TeacherDistributions, reverse: bool, logits: Tensor, rows: slice
) -> Tensor:
    """Divergences between teacher and model `[N]` in nats, float32; `logits` `[N, V]` are
    overwritten.

    All tokens but the teacher's K likeliest count as one. So the gradient of a kept token is q - p,
    and the others share the gradient of their sum in proportion to what the model gives each. In
    reverse it is q (log q - log p - D), where q and p of the others are of their sums.
    """
    teacher = teacher.at(rows)
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    chunk_rows = _CACHE_ROWS if logits.device.type == "cpu" else max(1, logits.shape[0])
    for first_row in range(0, logits.shape[0], chunk_rows):
        part = slice(first_row, first_row + chunk_rows)
        z, top_tokens = logits[part].float(), teacher.top_tokens[part]
        top_logs, rest_logs = teacher.top_logs[part], teacher.rest_logs[part, None]
        log_total = z.logsumexp(dim=1, keepdim=True)
        model_logs = z.gather(1, top_tokens) - log_total
        # Exact where the others' share is tiny, which 1 minus the sum of the kept would not be.
        rest_total = z.scatter(1, top_tokens, -torch.inf).logsumexp(dim=1, keepdim=True)
        model_rest = rest_total - log_total
        # From here on `z` holds probabilities: what the gradients below are made of in place.
        z.sub_(log_total).exp_()
        if reverse:
            rest_logs = rest_logs.clamp_min(_LEAST_LOG)
            losses[part] = divergence(model_logs, model_rest[:, 0], top_logs, rest_logs[:, 0])
            level = rest_logs + losses[part, None]
            z.mul_(model_rest.clamp_min(_LEAST_LOG) - level)
            level = top_logs + losses[part, None]
            z.scatter_(1, top_tokens, model_logs.exp() * (model_logs - level))
        else:
            losses[part] = divergence(top_logs, rest_logs[:, 0], model_logs, model_rest[:, 0])
            z.mul_(1.0 - (rest_logs - model_rest).exp())
            z.scatter_(1, top_tokens, model_logs.exp() - top_logs.exp())
        logits[part] = z
    return losses


def linear_divergence(
    hidden: Tensor,
    head: Tensor,
    teacher: TeacherDistributions,
    *,
    dtype: torch.dtype,
    shared: SharedGradient | None = None,
    reverse: bool = False,
) -> Tensor:
    """Sum over positions of the Kullback-Leibler divergence from a teacher, in nats.

    Args:
        hidden: final hidden states, `[N, D]`.
        head: output embedding, `[V, D]`.
        teacher: what is to be kept, at the same positions.
        dtype: of the matrix products; the divergence is float32 whatever it is.
        shared: as of `linear_cross_entropy`.
        reverse: KL(model || teacher), which is for text that the model wrote itself, in place of
            KL(teacher || model).

    Returns:
        Scalar, float32; differentiable in `hidden` and `head`.

    Reference:
        Hinton et al. 2015, https://arxiv.org/abs/1503.02531; in reverse Agarwal et al. 2024,
        https://arxiv.org/abs/2306.13649; with the tokens beyond the K likeliest as one.
    """
    rule = partial(_divergences_to_gradients, teacher, reverse)
    total: Tensor = _LinearLoss.apply(hidden, head, rule, dtype, shared)  # type: ignore[no-untyped-call]
    return total


def divergence_of_logits(
    logits: Tensor, teacher: TeacherDistributions, *, reverse: bool = False
) -> Tensor:
    """The same from logits `[N, V]` in float32, for models that do more to them than a product."""
    logs = logits.log_softmax(dim=1)
    model_rest = logs.scatter(1, teacher.top_tokens, -torch.inf).logsumexp(dim=1)
    model_logs = logs.gather(1, teacher.top_tokens)
    if reverse:
        teacher_rest = teacher.rest_logs.clamp_min(_LEAST_LOG)
        return divergence(model_logs, model_rest, teacher.top_logs, teacher_rest).sum()
    return divergence(teacher.top_logs, teacher.rest_logs, model_logs, model_rest).sum()


def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    dtype: torch.dtype,
    shared: SharedGradient | None = None,
) -> Tensor:
    """Sum over positions of `-log softmax(hidden @ head.T)[label]`.

    Args:
        hidden: final hidden states, `[N, D]`.
        head: output embedding, `[V, D]`.
        labels: target ids, `[N]`, none ignored.
        dtype: of the matrix products; softmax and loss are float32 whatever it is.
        shared: where the gradient of `head` is left for an embedding that is the same matrix.

    Returns:
        Scalar, float32, in nats; differentiable in `hidden` and `head`. On a GPU with liger-kernel
        its kernels compute it.
    """
    loss: Tensor
    # liger's kernels hand back a gradient of the head of their own, which cannot be shared.
    # Nor are they made for no positions: an empty micro-batch would divide by zero in them.
    if shared is None and len(labels) and (liger := _liger(hidden.device.type)) is not None:
        loss = liger(head.to(dtype), hidden.to(dtype), labels)
        return loss.float()
    rule = partial(_losses_to_gradients, labels)
    loss = _LinearLoss.apply(hidden, head, rule, dtype, shared)  # type: ignore[no-untyped-call]
    return loss


@lru_cache(maxsize=4)
def _liger(device: str) -> Any:
    """liger-kernel's fused loss (Hsu et al. 2024, https://arxiv.org/abs/2410.10989) where it is
    installed and the device is a GPU, for which its kernels are written; else None."""
    if device != "cuda" or find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
