"""From inputs to what the output head takes, and from there to log probabilities, bit by bit.

Logits of a whole batch would be far larger than everything else: 4,096 tokens times 49,152 words
are 800 MB in float32. Only positions that are scored are ever projected, and few at a time.
Legend: B rows, T tokens, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_PRODUCT_ROWS = 512
"""Positions of one product with the head on a CPU: for each the whole head is read and laid out
anew, which takes as long as the product itself with 64 positions."""

_ROWS = 16
"""Positions whose logits are made float32 at one time on a CPU: few enough to stay in the cache."""


def final_hidden(model: Any, inputs: Tensor, **more: Any) -> Tensor:
    """What the output head takes, `[B, T, D]`: caught on its way, so that any model will do.

    Args:
        model: a causal language model.
        inputs: tokens, `[B, T]`.
        more: for the model's forward, such as a cache; there is none by default.
    """
    caught: list[Tensor] = []

    def catch(_module: Any, args: tuple[Tensor, ...]) -> Any:
        caught.append(args[0])
        return (args[0][:, :0],)  # the head itself has nothing to do

    device = next(model.parameters()).device
    handle = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        model(input_ids=inputs.to(device), **{"use_cache": False, **more})
    finally:
        handle.remove()
    return caught[0]


def logit_chunks(
    model: Any, states: Tensor, rows: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Logits of positions in float32, few at a time.

    Args:
        model: a causal language model.
        states: what its head takes, `[N, D]`.
        rows: positions at one time.

    Yields:
        Index of the first position, and logits `[rows, V]`.
    """
    head = model.get_output_embeddings()
    on_cpu = states.device.type == "cpu"
    step = rows or (_ROWS if on_cpu else 4096)
    at_once = max(step, _PRODUCT_ROWS) if on_cpu else step
    for first in range(0, len(states), at_once):
        product = head(states[first : first + at_once])
        for start in range(0, len(product), step):
            yield first + start, _shape_logits(model, product[start : start + step]).float()


def picked_log_probabilities(
    model: Any,
    states: Tensor,
    targets: Sequence[int],
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Log probability of each target, `[number of targets]`, float32.

    Args:
        model: a causal language model.
        states: what its head takes, `[N, D]`.
        targets: tokens.
        positions: which state predicts each target, ascending; by default one after the other.
    """
    device = states.device
    wanted = torch.tensor(list(targets), device=device)
    places = torch.arange(len(wanted)) if positions is None else torch.tensor(list(positions))
    found = torch.empty(len(wanted), dtype=torch.float32, device=device)
    for start, logits in logit_chunks(model, states):
        first, last = torch.searchsorted(
            places, torch.tensor([start, start + len(logits)])
        ).tolist()
        here = places[first:last].to(device) - start
        found[first:last] = logits.log_softmax(dim=1)[here, wanted[first:last]]
    return found


def _shape_logits(model: Any, logits: Tensor) -> Tensor:
    """What some models do between the output head and the loss: scale, or cap softly."""
    config = model.config
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
