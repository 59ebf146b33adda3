"""The same prompts answered by several models, for the report: greedy, in one batch a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.generate.chat_model import Speaker, load_speaker
from toolkit.generate.greedy import greedy_answers
from toolkit.progress import progress, say

NEW_TOKENS = 64


def answer_rows(
    models: Mapping[str, Path], prompts: Sequence[str], *, new_tokens: int = NEW_TOKENS
) -> list[dict[str, str]]:
    """Answers side by side; one model is in memory at a time.

    Args:
        models: folders by label. A model without a chat template gets the first one's; where there
            is none, the prompts are continued as plain text.
        prompts: questions that each model is asked.
        new_tokens: most tokens of an answer.

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


def answer_batch(speaker: Speaker, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy answers of one model to all prompts at once; one that was cut ends in `…`."""
    if not prompts:
        return []
    encoded_prompts = [speaker.encode([{"role": "user", "content": text}]) for text in prompts]
    # All answers of a batch grow at the same place, so that the longest prompt sets the room.
    token_room = speaker.most_tokens - max(map(len, encoded_prompts))
    answer_tokens = greedy_answers(
        speaker.model, speaker.stops, encoded_prompts, min(new_tokens, token_room)
    )
    answers = []
    for tokens in answer_tokens:
        is_complete = bool(tokens) and tokens[-1] in speaker.stops
        text = speaker.decode(tokens[:-1] if is_complete else tokens).strip()
        answers.append(text if is_complete else f"{text} …")
    return answers
