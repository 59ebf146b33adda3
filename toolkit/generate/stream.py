"""Answers token by token: greedy, or drawn with a seed of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.generate.chat_model import Message, Speaker
from toolkit.generate.logits import check_logits, temper_logits
from toolkit.library_errors import computing


@dataclass(frozen=True)
class SamplingSettings:
    """How an answer is made.

    Attributes:
        new_tokens: most tokens of an answer.
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_p: probability of the likeliest tokens together that are drawn among.
        seed: seed of the draws; an answer depends on it and on the prompt, on nothing else.
    """

    new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise ConfigError(f"--new-tokens: must be at least 1 (got {self.new_tokens}).")
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature: must be 0 or more (got {self.temperature}).")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"--top-p: must be above 0 and at most 1 (got {self.top_p}).")


def stream_answer(
    speaker: Speaker, messages: Sequence[Message], settings: SamplingSettings
) -> Iterator[str]:
    """Pieces of the answer as they come; together they are the answer.

    Raises:
        ConfigError: the prompt leaves no room for an answer.
        EvaluationError: the model gives logits that no token can be taken from.
    """
    prompt_tokens = speaker.encode(messages)
    token_room = speaker.most_tokens - len(prompt_tokens)
    if token_room < 1:
        raise ConfigError(
            f"the prompt has {len(prompt_tokens)} tokens and {speaker.label} looks at "
            f"{speaker.most_tokens} at most; shorten it."
        )
    if not prompt_tokens:
        raise ConfigError("the prompt is empty; give some text.")
    answer_tokens: list[int] = []
    num_shown = 0
    for token in _next_tokens(
        speaker, prompt_tokens, settings, min(token_room, settings.new_tokens)
    ):
        answer_tokens.append(token)
        # All tokens each time: of one alone a tokenizer drops the space before a word, and a
        # character of several tokens would be lost.
        text = speaker.decode(answer_tokens)
        if text.endswith("\ufffd"):  # half of a character; the next token brings the rest
            continue
        if len(text) > num_shown:
            yield text[num_shown:]
            num_shown = len(text)
    if len(text := speaker.decode(answer_tokens)) > num_shown:
        yield text[num_shown:]


def _next_tokens(
    speaker: Speaker, prompt: list[int], settings: SamplingSettings, most: int
) -> Iterator[int]:
    model = speaker.model
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(settings.seed)
    inputs, cache, all_tokens = list(prompt), None, list(prompt)
    for _ in range(most):
        # Around one step only: the caller's own code between two pieces keeps its gradients.
        with computing(speaker.label), torch.inference_mode():
            input_ids = torch.tensor([inputs], device=device)
            output = model(input_ids=input_ids, past_key_values=cache, use_cache=True)
            # Drawn on the CPU: there a seed gives the same tokens whatever device computes.
            logits = output.logits[:, -1].float().cpu()
        token = pick(check_logits(logits)[0], settings, generator)
        if token in speaker.stops:
            return
        yield token
        all_tokens.append(token)
        cache = getattr(output, "past_key_values", None)
        # Architectures without such a cache are given the whole text at each step.
        inputs = all_tokens if cache is None else [token]


def pick(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> int:
    """The next token, from sound logits `[V]`."""
    if settings.temperature == 0.0:
        return int(logits.argmax())
    probabilities, token_order = temper_logits(logits, settings.temperature).sort(descending=True)
    # Everything before the share is reached, and the token that reaches it.
    probabilities[probabilities.cumsum(0) - probabilities >= settings.top_p] = 0.0
    return int(token_order[torch.multinomial(probabilities, 1, generator=generator)])
