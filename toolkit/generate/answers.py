"""The same prompts answered by several models, for the report: greedy, in one batch a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from toolkit.generate.speaker import Speaker, load_speaker
from toolkit.progress import progress, say

NEW_TOKENS = 64


def answer_rows(
    models: Mapping[str, Path], prompts: Sequence[str], *, new_tokens: int = NEW_TOKENS
) -> list[dict[str, str]]:
    """Answers side by side; one model is in memory at a time.

    Args:
        models: folders by label. A model without a chat template gets the first one's; where there
            is none, the prompts are continued as plain text.
        prompts: what each is asked.
        new_tokens: of an answer at most.

    Returns:
        For each prompt a row: `prompt`, and an answer by label. One that was cut ends in `…`.
    """
    rows = [{"prompt": prompt} for prompt in prompts]
    template: str | None = None
    with progress("answers, models", len(models)) as advance:
        for label, folder in models.items():
            speaker = load_speaker(folder, label=label, template=template)
            template = template or speaker.template
            for row, answer in zip(rows, answer_batch(speaker, prompts, new_tokens), strict=True):
                row[label] = answer
            advance(1, label)
    if template is None:
        say("  no chat template: the report's prompts were continued as plain text")
    return rows


@torch.inference_mode()
def answer_batch(speaker: Speaker, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy answers of one model to all prompts at once.

    Prompts are padded at their left end, so that all answers grow at the same place; the padding
    is masked, and positions count from each prompt's own beginning.
    """
    if not prompts:
        return []
    asked = [speaker.encode([{"role": "user", "content": prompt}]) for prompt in prompts]
    device = next(speaker.model.parameters()).device
    longest = max(map(len, asked))
    tokens = torch.zeros(len(asked), longest, dtype=torch.long, device=device)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(asked):
        tokens[row, longest - len(ids) :] = torch.tensor(ids, device=device)
        mask[row, longest - len(ids) :] = 1
    answers: list[list[int]] = [[] for _ in asked]
    growing = set(range(len(asked)))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs, cache = tokens, None
    for _ in range(min(new_tokens, speaker.most_tokens - longest)):
        output = speaker.model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        chosen = output.logits[:, -1].argmax(1)
        for row, token in enumerate(chosen.tolist()):
            if row in growing and token in speaker.stops:
                growing.discard(row)
            elif row in growing:
                answers[row].append(token)
        if not growing:
            break
        inputs, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return [
        speaker.decode(answer).strip() + (" …" if row in growing else "")
        for row, answer in enumerate(answers)
    ]
