"""A model in memory as lm-eval's own `LM`, with what prompts have in common computed once.

Whatever is a task of lm-eval is scored through it: its own tasks, question files and BIG-bench.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.head import can_pad
from toolkit.evaluate.likelihood import ItemSet, score_documents
from toolkit.evaluate.prompted import (
    ContinuationScore,
    Prompted,
    longest_input,
    score_continuations,
)
from toolkit.section import replace_values

_UNKNOWN_LENGTH = 2048
"""Window of rolling likelihood where neither model nor tokenizer names one, as lm-eval's own."""

_ENDLESS = 10**9
"""Tokens that no model reads together."""

TokenPair = tuple[list[int], list[int]]
"""Tokens of a context and of its continuation."""


class RequestEncoder:
    """Tokens of requests, cut where lm-eval cuts; each is made once, however many models are asked.

    Args:
        tokenizer: of the models.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        start_ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        self.start_token = next((int(token) for token in start_ids if token is not None), 0)
        self._start_text = tokenizer.decode([self.start_token])
        self._texts: dict[str, list[int]] = {}
        self._pairs: dict[tuple[str, str], TokenPair] = {}

    def encode_text(self, text: str) -> list[int]:
        """Tokens with the special ones that the tokenizer sets, but never a second beginning."""
        if text not in self._texts:
            self._texts[text] = self._encode(text)
        return self._texts[text]

    def encode_pair(self, context: str, continuation: str) -> TokenPair:
        """Tokens of a context and of what follows it.

        Blanks at the end of the context go to the continuation, whose tokens are what the context's
        leave of both together, since a tokenizer may join them.
        """
        pair_key = context, continuation
        if pair_key not in self._pairs:
            self._pairs[pair_key] = self._cut_pair(context, continuation)
        return self._pairs[pair_key]

    def _cut_pair(self, context: str, continuation: str) -> TokenPair:
        if not context:
            # As lm-eval does: an empty context is the token that begins a text, which is not
            # scored.
            tokens = list(self.tokenizer.encode(continuation, add_special_tokens=False))
            return [self.start_token], tokens[1:] if tokens[:1] == [self.start_token] else tokens
        # Whole minus context, in tokens: encoding the continuation by itself would cut words
        # otherwise than the model saw them in training.
        context_tokens = self.encode_text(context.rstrip())
        return context_tokens, self._encode(context + continuation)[len(context_tokens) :]

    def _encode(self, text: str) -> list[int]:
        encode_settings = {"add_special_tokens": False} if text.startswith(self._start_text) else {}
        return list(self.tokenizer.encode(text, **encode_settings))


def gather_prompts(pairs: Iterable[TokenPair]) -> tuple[list[Prompted], list[tuple[int, int]]]:
    """Continuations of one context as one prompt.

    Returns:
        The prompts, and for each pair its prompt and its place among that prompt's continuations.

    >>> gather_prompts([([1, 2], [3]), ([1, 2], [4])])
    ([Prompted(prompt=[1, 2], continuations=[[3], [4]])], [(0, 0), (0, 1)])
    """
    prompt_numbers: dict[tuple[int, ...], int] = {}
    prompts: list[Prompted] = []
    pair_places = []
    for context, continuation in pairs:
        prompt_number = prompt_numbers.setdefault(tuple(context), len(prompts))
        if prompt_number == len(prompts):
            prompts.append(Prompted(context, []))
        pair_places.append((prompt_number, len(prompts[prompt_number].continuations)))
        prompts[prompt_number].continuations.append(continuation)
    return prompts, pair_places


class SharedPromptLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A causal language model that computes each prompt once.

    Args:
        model: loaded, in the type it is scored in.
        encoder: tokens of requests.
        batch_tokens: tokens computed at once.
    """

    def __init__(self, model: Any, encoder: RequestEncoder, batch_tokens: int) -> None:
        super().__init__()
        self._model = model
        self._encoder = encoder
        self._batch_tokens = batch_tokens
        self._device = model.device

    def loglikelihood(self, requests: Sequence[Instance]) -> list[ContinuationScore]:
        """Log likelihood of each continuation, and whether greedy decoding gives it.

        Raises:
            EvaluationError: one is no finite number, or a continuation does not fit the model.
        """
        token_pairs = [self._encoder.encode_pair(*request.args[:2]) for request in requests]
        longest_tokens = longest_input(self._model)
        # Before anything is computed: hours of scoring should not end at one item that never fits.
        for request, (_, continuation) in zip(requests, token_pairs, strict=True):
            if longest_tokens is not None and len(continuation) > longest_tokens:
                raise EvaluationError(
                    f"{_name(request)}: what is to be scored has {len(continuation)} tokens, and "
                    f"the model reads {longest_tokens}; remove the item."
                )
        prompts, pair_places = gather_prompts(token_pairs)
        scores_by_prompt = score_continuations(self._model, prompts, self._batch_tokens)
        scores = [scores_by_prompt[number][pair_place] for number, pair_place in pair_places]
        for request, score in zip(requests, scores, strict=True):
            if not math.isfinite(score.log_likelihood):
                raise EvaluationError(
                    f"{_name(request)}: a log likelihood is {score.log_likelihood}; the model's "
                    "weights are damaged."
                )
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Log likelihood of whole texts, window by window where they are longer than the model's.

        Raises:
            EvaluationError: one is no finite number.
        """
        whole_texts = [request.args[0] for request in requests]
        start_token = self._encoder.start_token
        items = ItemSet(
            ids=[_name(request) for request in requests],
            roles=["watch"] * len(whole_texts),
            num_bytes=[len(text.encode()) for text in whole_texts],
            # As in lm-eval: the start token stands in front even where the tokenizer puts one there
            # itself.
            tokens=[[start_token, *self._encoder.encode_text(text)] for text in whole_texts],
        )
        section = EvaluateSection(batch_tokens=self._batch_tokens, context_tokens=1)
        section = replace_values(section, window_tokens=self._window_tokens)
        return [-loss for loss in score_documents(self._model, items, section)]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers as lm-eval's own class for models of transformers gives them."""
        return list(self._generator.generate_until(list(requests), disable_tqdm=True))

    @property
    def _window_tokens(self) -> int:
        longest_tokens = longest_input(self._model)
        if longest_tokens is None:
            named = int(getattr(self._encoder.tokenizer, "model_max_length", _UNKNOWN_LENGTH))
            # Tokenizers without a length name an enormous one.
            longest_tokens = named if named < _ENDLESS else _UNKNOWN_LENGTH
        return longest_tokens

    @cached_property
    def _generator(self) -> Any:
        from lm_eval.models.huggingface import HFLM  # takes seconds to import

        return HFLM(
            pretrained=self._model,
            tokenizer=self._encoder.tokenizer,
            batch_size=max(1, self._batch_tokens // 128) if can_pad(self._model) else 1,
        )


def _name(request: Instance) -> str:
    return f"{request.task_name}: item {getattr(request.doc, 'id', request.doc_id)}"
