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
    """Greedy answers of one model to all prompts at once; one that was cut ends in `…`.

    A prompt that leaves no room for an answer is told so in the answer's place.
    """
    encoded_prompts = [speaker.encode([{"role": "user", "content": text}]) for text in prompts]
    answers = [
        f"(no answer: the prompt has {len(prompt)} tokens, and the model looks at "
        f"{speaker.most_tokens} at most)"
        for prompt in encoded_prompts
    ]
    # All answers of a batch grow at the same place: those that find less room go by themselves.
    rows_by_room: dict[int, list[int]] = {}
    for row, prompt in enumerate(encoded_prompts):
        token_room = min(new_tokens, speaker.most_tokens - len(prompt))
        if token_room > 0:
            rows_by_room.setdefault(token_room, []).append(row)
    for token_room, rows in rows_by_room.items():
        batch = [encoded_prompts[row] for row in rows]
        batch_tokens = greedy_answers(speaker.model, speaker.stops, batch, token_room)
        for row, tokens in zip(rows, batch_tokens, strict=True):
            is_complete = bool(tokens) and tokens[-1] in speaker.stops
            text = speaker.decode(tokens[:-1] if is_complete else tokens).strip()
            answers[row] = text if is_complete else f"{text} …"
    return answers
