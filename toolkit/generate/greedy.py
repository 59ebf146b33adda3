"""Answers of one model to many prompts at once, as tokens: greedy, or drawn.

Legend: B prompts, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from toolkit.checkpoint.forward import log_probabilities_alone, without_cache
from toolkit.checkpoint.probe_documents import probe_documents
from toolkit.generate.logits import check_logits, temper_logits
from toolkit.library_errors import is_out_of_memory

TokenChoice = Callable[[torch.Tensor, Sequence[int], int], torch.Tensor]
"""The next tokens, `[B]`, given logits `[B, V]`, the number of the prompt of each row, and how many
tokens each answer has so far."""

_TOGETHER: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether each model answers in a batch as it does alone."""


def greedy_answers(
    model: Any, stops: Collection[int], prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """The likeliest token again and again; see `grow_answers` for what is given."""
    return grow_answers(model, stops, prompts, new_tokens, _likeliest)


def drawn_answers(
    model: Any,
    stops: Collection[int],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    temperature: float,
    units: Callable[[int, int], float],
) -> list[list[int]]:
    """Answers drawn from the model's distribution, each prompt's by draws of its own.

    Args:
        model, stops, prompts, new_tokens: as of `grow_answers`.
        temperature: logits are divided by it.
        units: the draw for a prompt's number and a place in its answer, in [0, 1).
    """

    def choose(logits: torch.Tensor, rows: Sequence[int], place: int) -> torch.Tensor:
        draws = torch.tensor([units(row, place) for row in rows], dtype=torch.float64)
        # Where the cumulated probability first exceeds the draw; float64, since with a vocabulary
        # of 100,000 the steps of rare tokens would be lost in float32 sums.
        edges = temper_logits(logits.double().cpu(), temperature).cumsum(dim=1)
        chosen = torch.searchsorted(edges, draws[:, None] * edges[:, -1:], right=True)[:, 0]
        return chosen.clamp(max=logits.shape[1] - 1).to(logits.device)

    return grow_answers(model, stops, prompts, new_tokens, choose, drop_ended=True)


def grow_answers(
    model: Any,
    stops: Collection[int],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    choose: TokenChoice,
    *,
    drop_ended: bool = False,
) -> list[list[int]]:
    """Answers by any choice of tokens: together where the model answers so as it does alone.

    Args:
        model: causal language model.
        stops: tokens after which an answer is over.
        prompts: tokens of each prompt, at least one.
        new_tokens: most tokens of an answer.
        choose: the next token of each.
        drop_ended: whether answers that are over leave the batch, which may change the last bits of
            the others' logits.

    Returns:
        Tokens of each answer; the last is a stop where the model came to an end.

    Raises:
        EvaluationError: the model gives logits that no token can be taken from.
    """
    if _answers_together(model):
        return grow_together(model, stops, prompts, new_tokens, choose, drop_ended=drop_ended)
    return [
        _grow_alone(model, stops, prompt, new_tokens, _choice_for(choose, row))
        for row, prompt in enumerate(prompts)
    ]


def _choice_for(choose: TokenChoice, row: int) -> TokenChoice:
    """The choice for one prompt of many, where each grows by itself."""
    return lambda logits, _rows, place: choose(logits, [row], place)


def _likeliest(logits: torch.Tensor, _rows: Sequence[int], _place: int) -> torch.Tensor:
    return logits.argmax(1)


@torch.inference_mode()
def _grow_alone(
    model: Any, stops: Collection[int], prompt: Sequence[int], new_tokens: int, choose: TokenChoice
) -> list[int]:
    """An answer without batch, padding or cache: slow, and right for any architecture."""
    device = next(model.parameters()).device
    answer: list[int] = []
    while len(answer) < new_tokens and not (answer and answer[-1] in stops):
        inputs = torch.tensor([[*prompt, *answer]], device=device)
        logits = model(**without_cache(model, {"input_ids": inputs})).logits
        answer.append(int(choose(check_logits(logits[:, -1]), [0], len(answer))[0]))
    return answer


def _answers_together(model: Any) -> bool:
    """Whether each token that a batch chooses is the likeliest alone too, but for rounding: some
    architectures read padding, or take no positions. Tried once per model."""
    if model not in _TOGETHER:
        prompts = [text.tolist() for text in probe_documents(model, 32)]
        is_exact = next(model.parameters()).dtype == torch.float32
        try:
            # Rounding may swap tokens that are equally likely, so that not the tokens are compared,
            # but what they miss in nats. bfloat16 has steps of 1/8 where logits lie between 16 and
            # 32.
            answers = grow_together(model, (), prompts, 4, _likeliest)
            _TOGETHER[model] = all(
                _shortfall(model, prompt, answer) <= (1e-3 if is_exact else 0.25)
                for prompt, answer in zip(prompts, answers, strict=True)
            )
        except Exception as error:  # whatever an architecture's own code raises
            # Says nothing of the architecture: another time there may be room.
            if is_out_of_memory(error):
                return False
            _TOGETHER[model] = False
    return _TOGETHER[model]


@torch.inference_mode()
def _shortfall(model: Any, prompt: list[int], answer: list[int]) -> float:
    """By how many nats the worst token of an answer misses the likeliest one."""
    tokens = torch.tensor([*prompt, *answer], device=next(model.parameters()).device)
    logits = model(**without_cache(model, {"input_ids": tokens[None, :-1]})).logits[0].float()
    best_scores = logits.log_softmax(dim=-1).max(dim=-1).values
    chosen_scores = log_probabilities_alone(model, tokens)
    return float((best_scores - chosen_scores)[-len(answer) :].max())


@torch.inference_mode()
def grow_together(
    model: Any,
    stops: Collection[int],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    choose: TokenChoice,
    *,
    drop_ended: bool = False,
) -> list[list[int]]:
    """Answers that grow side by side, whatever the model's generation settings say.

    Prompts are padded at their left end, so that all answers grow at the same place; the padding
    is masked, and positions count from each prompt's own beginning.

    Arguments and result are those of `grow_answers`.
    """
    device = next(model.parameters()).device
    inputs, mask = _pad_left(prompts, device)
    # Padding is masked, but a table of positions has no row -1 to look up.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    batch_rows = list(range(len(prompts)))
    # Rows in the batch, and those of them that have not ended: what is over goes on being computed,
    # and is not kept, until so many have ended that taking them out pays.
    growing_rows = set(batch_rows)
    cache = None
    # Nearly all models can leave out the logits of the prompts, which may be gigabytes.
    forward_arguments = inspect.signature(model.forward).parameters
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in forward_arguments else {}
    for place in range(new_tokens):
        output = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
        cache = output.past_key_values
        chosen_tokens = choose(check_logits(output.logits[:, -1]), batch_rows, place)
        for row, token in zip(batch_rows, chosen_tokens.tolist(), strict=True):
            if row in growing_rows:
                answers[row].append(token)
                if token in stops:
                    growing_rows.discard(row)
        if not growing_rows:
            break
        inputs, positions = chosen_tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        # Copying the cache costs a step or so, hence not for each answer that ends.
        if drop_ended and 2 * len(growing_rows) <= len(batch_rows) and _is_plain(cache):
            kept = torch.tensor([n for n, row in enumerate(batch_rows) if row in growing_rows])
            kept = kept.to(device)
            cache.batch_select_indices(kept)
            inputs, positions, mask = inputs[kept], positions[kept], mask[kept]
            batch_rows = [row for row in batch_rows if row in growing_rows]
    return answers


def _is_plain(cache: Any) -> bool:
    """Whether rows can be taken out of a cache: others may keep what belongs to the batch."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return type(cache) is DynamicCache and all(type(one) is DynamicLayer for one in cache.layers)


def _pad_left(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts side by side, zeros before the shorter ones, and the mask of what is a prompt's."""
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, longest - len(ids) :] = torch.tensor(list(ids), device=device)
        mask[row, longest - len(ids) :] = 1
    return tokens, mask
