"""Greedy answers of one model to many prompts at once, as tokens."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch


@torch.inference_mode()
def greedy_batch(
    model: Any, stops: Collection[int], prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """The likeliest token again and again, whatever the model's generation settings say.

    Prompts are padded at their left end, so that all answers grow at the same place; the padding
    is masked, and positions count from each prompt's own beginning.

    Args:
        model: a causal language model.
        stops: tokens after which an answer is over.
        prompts: tokens of each, at least one.
        new_tokens: of an answer at most.

    Returns:
        Tokens of each answer; the last is a stop where the model came to an end.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, longest - len(ids) :] = torch.tensor(list(ids), device=device)
        mask[row, longest - len(ids) :] = 1
    answers: list[list[int]] = [[] for _ in prompts]
    growing = set(range(len(prompts)))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs, cache = tokens, None
    # Nearly all models can leave out the logits of the prompts, which may be gigabytes.
    takes = inspect.signature(model.forward).parameters
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    for _ in range(new_tokens):
        output = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
        cache = output.past_key_values
        chosen = output.logits[:, -1].argmax(1)
        for row, token in enumerate(chosen.tolist()):
            if row in growing:
                answers[row].append(token)
                if token in stops:
                    growing.discard(row)
        if not growing:
            break
        inputs, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return answers
