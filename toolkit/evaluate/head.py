"""From inputs to what the output head takes, and from there to log probabilities, bit by bit.

Logits of a whole batch would be far larger than everything else: 4,096 tokens times 49,152 words
are 800 MB in float32. Only positions that are scored are ever projected, and few at a time.
Legend: B rows, T tokens, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from toolkit.checkpoint.forward import agrees, log_probabilities_alone, without_cache
from toolkit.checkpoint.probe_documents import probe_documents
from toolkit.library_errors import is_out_of_memory

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
    model_logits: Tensor = model(**without_cache(model, {"input_ids": inputs, **more})).logits
    return model_logits


@torch.no_grad()
def can_pad(model: Any) -> bool:
    """Whether texts of unequal lengths can be computed together, padded at the right: tried once
    per model, as some architectures read what follows, or spread it."""
    return find_once(_PADDED, model, lambda: _pads_rightly(model))


def find_once(found: MutableMapping[Any, bool], model: Any, probe: Callable[[], bool]) -> bool:
    """What a probe finds of a model, tried once: False where the model's code raises.

    Args:
        found: what was found of models before.
        model: what is probed.
        probe: tries it.
    """
    if model not in found:
        try:
            found[model] = probe()
        except Exception as error:  # whatever an architecture's own code raises
            # Says nothing of the architecture: another time there may be room.
            if is_out_of_memory(error):
                return False
            found[model] = False
    return found[model]


def _pads_rightly(model: Any) -> bool:
    """Whether two texts side by side give what each gives alone."""
    first_probe, second = probe_documents(model, 64)
    padded_rows = torch.zeros(2, len(first_probe) - 1, dtype=torch.long)
    padded_rows[0], padded_rows[1, : len(second) - 1] = first_probe[:-1], second[:-1]
    hidden_states = final_hidden(model, padded_rows)
    found = [
        picked_log_probabilities(model, row_states[: len(text) - 1], text[1:].tolist())
        for row_states, text in zip(hidden_states, (first_probe, second), strict=True)
    ]
    expected = [log_probabilities_alone(model, text) for text in (first_probe, second)]
    return all(agrees(model, *pair) for pair in zip(found, expected, strict=True))


@torch.no_grad()
def _logits_are_shaped_here(model: Any) -> bool:
    """Whether the head's product, scaled and capped as the configuration says, is the logits."""
    if model not in _SHAPED_HERE:
        # Without a recursion: what is asked below asks this very question again.
        _SHAPED_HERE[model] = True  # for what is asked on the way
        probe_text, _ = probe_documents(model, 64)
        try:
            hidden_states = _caught(model, probe_text[None, :-1], {})[0]
            head_logs = picked_log_probabilities(model, hidden_states, probe_text[1:].tolist())
            agrees_here = agrees(model, head_logs, log_probabilities_alone(model, probe_text))
        except Exception as error:  # no head, or one that is called in another way
            if is_out_of_memory(error):
                del _SHAPED_HERE[model]
                raise
            agrees_here = False
        _SHAPED_HERE[model] = agrees_here
    return _SHAPED_HERE[model]


def _caught(model: Any, inputs: Tensor, more: dict[str, object]) -> Tensor:
    caught_states: list[Tensor] = []

    def catch(_module: Any, args: tuple[Tensor, ...]) -> Any:
        caught_states.append(args[0])
        # A slice of no positions: the model's own logits, which may not fit, are never made.
        return (args[0][:, :0],)  # the head itself has nothing to do

    device = next(model.parameters()).device
    handle = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        model(**without_cache(model, {"input_ids": inputs.to(device), **more}))
    finally:
        # Even where the pass failed: every later call of the model would go through the hook.
        handle.remove()
    return caught_states[0]


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
    # These states are logits already; see `final_hidden`.
    if not _logits_are_shaped_here(model):
        for start in range(0, len(states), rows or _ROWS):
            yield start, states[start : start + (rows or _ROWS)].float()
        return
    output_head = model.get_output_embeddings()
    on_cpu = states.device.type == "cpu"
    step_rows = rows or (_ROWS if on_cpu else 4096)
    product_rows = max(step_rows, _PRODUCT_ROWS) if on_cpu else step_rows
    for first in range(0, len(states), product_rows):
        product = output_head(states[first : first + product_rows])
        for start in range(0, len(product), step_rows):
            yield first + start, _shape_logits(model, product[start : start + step_rows]).float()


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
    picked_chunks = [
        logs[rows, tokens] for logs, rows, tokens in _log_chunks(model, states, targets, positions)
    ]
    return torch.cat(picked_chunks)


def picked_and_greedy(
    model: Any,
    states: Tensor,
    targets: Sequence[int],
    positions: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `picked_log_probabilities`, and whether each target is the likeliest token there (of tied
    ones the first, as in lm-eval)."""
    picked_chunks, greedy_chunks = [], []
    for logs, rows, tokens in _log_chunks(model, states, targets, positions):
        picked_chunks.append(logs[rows, tokens])
        greedy_chunks.append(logs.argmax(dim=1)[rows] == tokens)
    return torch.cat(picked_chunks), torch.cat(greedy_chunks)


def _log_chunks(
    model: Any, states: Tensor, targets: Sequence[int], positions: Sequence[int] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Log probabilities of a few positions `[n, V]`, then row and token of each target there."""
    states_device = states.device
    target_tokens = torch.tensor(list(targets), device=states_device)
    target_rows = torch.arange(len(targets)) if positions is None else torch.tensor(list(positions))
    for start, logits in logit_chunks(model, states):
        # Positions ascend, so targets of a chunk lie side by side.
        first_target, end_target = torch.searchsorted(
            target_rows, torch.tensor([start, start + len(logits)])
        ).tolist()
        chunk_rows = target_rows[first_target:end_target].to(states_device) - start
        yield logits.log_softmax(dim=1), chunk_rows, target_tokens[first_target:end_target]


def _shape_logits(model: Any, logits: Tensor) -> Tensor:
    """What some models do between the output head and the loss: scale, or cap softly."""
    text_config = model.config.get_text_config()
    if (logit_scale := getattr(text_config, "logit_scale", None)) is not None:
        logits = logits * logit_scale
    if (logit_divisor := getattr(text_config, "logits_scaling", None)) is not None:
        logits = logits / logit_divisor
    if (soft_cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    return logits
