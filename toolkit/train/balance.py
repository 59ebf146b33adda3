"""Mixtures of experts in training: the loss that keeps experts in use, and how much each is used.

Legend: L layers with experts, N tokens, E experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def experts_per_token(config: Any) -> int:
    """k of a mixture of experts whose routers can be watched; 0 for a dense model."""
    if getattr(config, "router_aux_loss_coef", None) is None:
        return 0
    return int(getattr(config, "num_experts_per_tok", None) or 0)


def balance_coefficient(config: Any) -> float:
    """What the balancing loss is multiplied with; 0 turns it off."""
    return float(getattr(config, "router_aux_loss_coef", None) or 0.0)


def with_routers(model: Any, given: dict[str, object]) -> tuple[Any, Any]:
    """Run a whole model and keep its routers' logits: `(output, router logits)`.

    Asked for them itself, it would compute its own balancing loss, for which masks of packed blocks
    have the wrong shape.
    """
    base_outputs: list[Any] = []
    hooks = [
        model.base_model.register_forward_pre_hook(
            lambda _, arguments, named: (arguments, {**named, "output_router_logits": True}),
            with_kwargs=True,
        ),
        model.base_model.register_forward_hook(lambda *seen: base_outputs.append(seen[2])),
    ]
    try:
        # The hook on the inner model alone asks for logits of routers; the outer one never learns
        # of it.
        output = model(**given)
    finally:
        for hook in hooks:
            hook.remove()
    return output, getattr(base_outputs[0], "router_logits", None)


def balancing_loss(router_logits: Sequence[Tensor], is_real: Tensor, k: int) -> Tensor:
    """`E * sum_e f_e P_e`, the mean over layers: k where experts are used alike, more elsewhere.

    f_e is the share of tokens that go through expert e (the shares of a layer add up to k), P_e its
    mean probability. transformers pools all layers before it multiplies, so that an expert starved
    in one layer can make up for another that is overrun; here each layer counts, as in the paper.

    Args:
        router_logits: `[N, E]` for each of L layers.
        is_real: `[N]` bool, False for padding; at least one is True.
        k: experts a token.

    Returns:
        Scalar, float32, differentiable in the logits.

    Reference:
        Fedus et al. 2021, Switch Transformers, equations 4 to 6 (there k is 1).

    >>> alike = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    >>> real = torch.tensor([True, True])
    >>> round(float(balancing_loss([alike], real, 1)), 4)
    1.0
    >>> round(float(balancing_loss([alike[[0, 0]]], real, 1)), 2)
    1.91
    """
    layer_losses = []
    for logits in router_logits:
        probabilities = logits[is_real].float().softmax(dim=-1)
        # A choice has no gradient: what the routers learn comes by the mean probabilities alone.
        expert_shares = _one_hot(probabilities, k).mean(dim=0)
        layer_losses.append(logits.shape[-1] * (expert_shares * probabilities.mean(dim=0)).sum())
    return torch.stack(layer_losses).mean()


@torch.no_grad()
def expert_counts(router_logits: Sequence[Tensor], is_real: Tensor, k: int) -> Tensor:
    """How often each expert was chosen, `[L, E]` float64."""
    layer_counts = [
        _one_hot(logits[is_real], k).sum(dim=0, dtype=torch.float64) for logits in router_logits
    ]
    return torch.stack(layer_counts)


def _one_hot(scores: Tensor, k: int) -> Tensor:
    """1 for the k experts of each token, `[N, E]`."""
    return torch.zeros_like(scores).scatter_(1, scores.detach().topk(k, dim=-1).indices, 1.0)


def balance_figures(counts: Tensor) -> dict[str, object]:
    """What the metrics say of it: shares by expert over all layers, and the least of any layer.

    Args:
        counts: `[L, E]`.

    >>> balance_figures(torch.tensor([[3.0, 1.0], [1.0, 3.0]]))
    {'expert_shares': [0.5, 0.5], 'least_expert_share': 0.25}
    """
    expert_shares = counts.sum(dim=0) / counts.sum().clamp(min=1)
    least_share = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).min()
    # Plain values: JSON has no tensors, and four digits tell experts that starve.
    return {
        "expert_shares": [round(float(share), 4) for share in expert_shares],
        "least_expert_share": round(float(least_share), 4),
    }
