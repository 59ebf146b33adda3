"""Forward passes of any causal language model, whatever arguments its architecture takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


def without_cache(model: Any, given: dict[str, object]) -> dict[str, object]:
    """Arguments of a forward pass that keeps no cache, where the model has one to turn off."""
    takes = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    return {"use_cache": False, **given} if takes_any or "use_cache" in takes else given


@torch.no_grad()
def log_probabilities_alone(model: Any, tokens: Tensor) -> Tensor:
    """Log probability of every token of a text but the first, as transformers computes the text
    alone: no padding, no cache, no batch.

    Args:
        model: a causal language model.
        tokens: of the text, `[T]`.

    Returns:
        `[T - 1]` float32.
    """
    inputs = tokens[:-1].to(next(model.parameters()).device)
    logits: Tensor = model(**without_cache(model, {"input_ids": inputs[None]})).logits[0].float()
    target_tokens = tokens[1:].to(logits.device)
    log_probabilities: Tensor = logits.log_softmax(dim=-1).gather(1, target_tokens[:, None])[:, 0]
    return log_probabilities


def agrees(model: Any, found: Tensor, expected: Tensor) -> bool:
    """Whether log probabilities are the same but for rounding, in the type that a model computes
    in; what is no number says nothing.

    Args:
        model: whose parameters, or autocast, set the type.
        found, expected: `[N]` each.
    """
    device = next(model.parameters()).device.type
    is_exact = next(model.parameters()).dtype == torch.float32
    is_exact = is_exact and not torch.is_autocast_enabled(device)
    if not bool(expected.isfinite().all()):
        return True
    # Sizes, not their sum: what one token gains another may lose.
    difference = float((found.to(expected.device) - expected).abs().sum())
    return difference <= (1e-4 if is_exact else 1e-2) * float(expected.abs().sum())


def divergence(
    top_logs: Tensor, rest_logs: Tensor, model_logs: Tensor, model_rest: Tensor
) -> Tensor:
    """Kullback-Leibler divergence over the kept tokens and all others as one, in nats, `[T]`.

    Lumping the others together can only lessen it (the data-processing inequality), by what they
    differ among each other.

    Args:
        top_logs: log probabilities under the general model, `[T, K]`.
        rest_logs: of all others together, `[T]`.
        model_logs: log probabilities of the same tokens under the other model, `[T, K]`.
        model_rest: of all others together under it, `[T]`.

    Reference:
        Cover & Thomas 2006, Elements of information theory, theorem 2.7.1.

    >>> logs = torch.log(torch.tensor([[0.5, 0.25]]))
    >>> other = torch.log(torch.tensor([[0.25, 0.5]]))
    >>> rest = torch.log(torch.tensor([0.25]))
    >>> round(float(divergence(logs, rest, other, rest)), 4)  # 0.5 ln 2 - 0.25 ln 2
    0.1733
    """
    of_top_tokens = (top_logs.exp() * (top_logs - model_logs)).sum(dim=1)
    of_other_tokens = rest_logs.exp() * (rest_logs - model_rest)
    # Where the others underflow, 0 times infinity would be NaN; their part goes to 0 with them.
    return of_top_tokens + torch.where(rest_logs == -torch.inf, 0.0, of_other_tokens)
