"""From inputs to what the output head takes, and from there to log probabilities, bit by bit.

Logits of a whole batch would be far larger than everything else: 4,096 tokens times 49,152 words
are 800 MB in float32. Only positions that are scored are ever projected, and few at a time.
Legend: B rows, T tokens, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from toolkit.checkpoint.forward import agrees, log_probabilities_alone, without_cache
from toolkit.checkpoint.probe_documents import probe_documents

_PRODUCT_ROWS = 512
"""Positions of one product with the head on a CPU: for each the whole head is read and laid out
anew, which takes as long as the product itself with 64 positions."""

_ROWS = 16
"""Positions whose logits are made float32 at one time on a CPU: few enough to stay in the cache."""


_SHAPED_HERE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_PADDED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""What was found of each model. Weights may change later; an architecture does not."""


def final_hidden(model: Any, inputs: Tensor, **more: Any) -> Tensor:
    """What the output head takes, `[B, T, D]`: caught on its way, so that any model will do.

    Where a model does to its logits what is not known here, these are its logits, `[B, T, V]`;
    `logit_chunks` knows.

    Args:
        model: a causal language model.
        inputs: tokens, `[B, T]`.
        more: for the model's forward, such as a cache; there is none by default.
    """
    if _logits_are_shaped_here(model):
        return _caught(model, inputs, more)
    inputs = inputs.to(next(model.parameters()).device)
    logits: Tensor = model(**without_cache(model, {"input_ids": inputs, **more})).logits
    return logits


@torch.no_grad()
def can_pad(model: Any) -> bool:
    """Whether texts of unequal lengths can be computed together, padded at the right: tried once
    per model, as some architectures read what follows, or spread it."""
    if model not in _PADDED:
        first, second = probe_documents(model, 64)
        rows = torch.zeros(2, len(first) - 1, dtype=torch.long)
        rows[0], rows[1, : len(second) - 1] = first[:-1], second[:-1]
        try:
            states = final_hidden(model, rows)
            found = [
                picked_log_probabilities(model, own[: len(text) - 1], text[1:].tolist())
                for own, text in zip(states, (first, second), strict=True)
            ]
            expected = [log_probabilities_alone(model, text) for text in (first, second)]
            _PADDED[model] = all(agrees(model, *pair) for pair in zip(found, expected, strict=True))
        except Exception:  # whatever an architecture's own code raises
            _PADDED[model] = False
    return _PADDED[model]


@torch.no_grad()
def _logits_are_shaped_here(model: Any) -> bool:
    """Whether the head's product, scaled and capped as the configuration says, is the logits."""
    if model not in _SHAPED_HERE:
        _SHAPED_HERE[model] = True  # for what is asked on the way
        text, _ = probe_documents(model, 64)
        try:
            states = _caught(model, text[None, :-1], {})[0]
            found = picked_log_probabilities(model, states, text[1:].tolist())
            is_known = agrees(model, found, log_probabilities_alone(model, text))
        except Exception:  # no head, or one that is called in another way
            is_known = False
        _SHAPED_HERE[model] = is_known
    return _SHAPED_HERE[model]


def _caught(model: Any, inputs: Tensor, more: dict[str, Any]) -> Tensor:
    caught: list[Tensor] = []

    def catch(_module: Any, args: tuple[Tensor, ...]) -> Any:
        caught.append(args[0])
        return (args[0][:, :0],)  # the head itself has nothing to do

    device = next(model.parameters()).device
    handle = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        model(**without_cache(model, {"input_ids": inputs.to(device), **more}))
    finally:
        handle.remove()
    return caught[0]


def logit_chunks(
    model: Any, states: Tensor, rows: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Logits of positions in float32, few at a time.

    Args:
        model: a causal language model.
        states: of `final_hidden`, `[N, D]`.
        rows: positions at one time.

    Yields:
        Index of the first position, and logits `[rows, V]`.
    """
    if not _logits_are_shaped_here(model):
        for start in range(0, len(states), rows or _ROWS):
            yield start, states[start : start + (rows or _ROWS)].float()
        return
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
    picked = [
        logs[rows, tokens] for logs, rows, tokens in _log_chunks(model, states, targets, positions)
    ]
    return torch.cat(picked)


def picked_and_greedy(
    model: Any,
    states: Tensor,
    targets: Sequence[int],
    positions: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `picked_log_probabilities`, and whether each target is the likeliest token there (of tied
    ones the first, as in lm-eval)."""
    picked, is_greedy = [], []
    for logs, rows, tokens in _log_chunks(model, states, targets, positions):
        picked.append(logs[rows, tokens])
        is_greedy.append(logs.argmax(dim=1)[rows] == tokens)
    return torch.cat(picked), torch.cat(is_greedy)


def _log_chunks(
    model: Any, states: Tensor, targets: Sequence[int], positions: Sequence[int] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Log probabilities of a few positions `[n, V]`, then row and token of each target there."""
    device = states.device
    target_tokens = torch.tensor(list(targets), device=device)
    places = torch.arange(len(targets)) if positions is None else torch.tensor(list(positions))
    for start, logits in logit_chunks(model, states):
        first, last = torch.searchsorted(
            places, torch.tensor([start, start + len(logits)])
        ).tolist()
        rows = places[first:last].to(device) - start
        yield logits.log_softmax(dim=1), rows, target_tokens[first:last]


def _shape_logits(model: Any, logits: Tensor) -> Tensor:
    """What some models do between the output head and the loss: scale, or cap softly."""
    config = model.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
