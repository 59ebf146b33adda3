"""One gradient for an embedding that is the output's matrix too.

Autograd makes a gradient as large as the vocabulary for each use of such a matrix and adds them up.
Few rows of the input's are not zero; they can be added to the output's own.

Legend: N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SharedGradient:
    """Where the output leaves the gradient of the matrix for the embedding, which comes last in a
    backward pass.

    Attributes:
        value: `[V, D]` float32, between those two.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None


def share_gradient(model: Any) -> None:
    """Let the embedding and the output of a causal language model have one gradient, where they are
    one matrix that learns in float32."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    # By type, not by `isinstance`: some architectures' own embeddings scale what they look up.
    if type(embedding) is not nn.Embedding or head is None or head.weight is not embedding.weight:
        return
    is_plain = (
        embedding.max_norm is None and not embedding.scale_grad_by_freq and not embedding.sparse
    )
    if is_plain and embedding.weight.requires_grad and embedding.weight.dtype == torch.float32:
        vars(embedding)["forward"] = MethodType(_embedding_forward, embedding)


def unshare_gradient(model: Any) -> None:
    """Undo `share_gradient`."""
    vars(model.get_input_embeddings()).pop("forward", None)


@contextmanager
def shared_gradient(model: Any) -> Iterator[SharedGradient | None]:
    """What the output of a forward pass within is to leave its gradient in; None where the
    embedding does not share."""
    embedding = model.get_input_embeddings()
    if not (_shares(embedding) and embedding.training and torch.is_grad_enabled()):
        yield None
        return
    embedding.shared_gradient = SharedGradient()
    try:
        yield embedding.shared_gradient
    finally:
        del embedding.shared_gradient


def _shares(embedding: Any) -> bool:
    return getattr(vars(embedding).get("forward"), "__func__", None) is _embedding_forward


def _embedding_forward(self: Any, tokens: Tensor) -> Tensor:
    shared = vars(self).get("shared_gradient")
    if shared is None:
        return type(self).forward(self, tokens)  # type: ignore[no-any-return]
    return _Embed.apply(tokens, self.weight, self.padding_idx, shared)  # type: ignore[no-any-return, no-untyped-call]


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None, shared: SharedGradient
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.padding, ctx.shared, ctx.size = padding, shared, weight.shape
        return nn.functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        head_grad, ctx.shared.value = ctx.shared.value, None
        if head_grad is None:  # no target in the whole batch, or an output that went another way
            head_grad = torch.zeros(ctx.size, dtype=grad.dtype, device=grad.device)
        flat_tokens, grad = tokens.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding is not None:
            # The padding token's row learns nothing, as in nn.Embedding itself.
            is_learned = flat_tokens != ctx.padding
            flat_tokens, grad = flat_tokens[is_learned], grad[is_learned]
        # A token's rows are added up first, as a gradient of their own would have them.
        used_tokens, row_of_token = flat_tokens.unique(return_inverse=True)
        token_sums = torch.zeros(
            len(used_tokens), grad.shape[-1], dtype=grad.dtype, device=grad.device
        )
        head_grad.index_add_(0, used_tokens, token_sums.index_add_(0, row_of_token, grad))
        return None, head_grad, None, None
