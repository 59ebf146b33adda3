"""The general model's own answers, made once, and what it thought of each of their tokens.

Legend: B prompts, T tokens, K tokens kept of each distribution, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.bounded import bounded_template
from toolkit.errors import EvaluationError
from toolkit.evaluate.head import logit_chunks
from toolkit.evaluate.prompted import answer_states, longest_input
from toolkit.generate.chat_model import stops_of
from toolkit.generate.greedy import greedy_answers
from toolkit.library_errors import reading
from toolkit.stage import hash_json, write_atomically

_BLOCK_TOKENS = 16384
"""Of prompts and answers together in a block, which is answered and written at once: a step of few
rows takes as long as one of many, and the cache of many long ones would not fit."""

_LEAST_ROWS, _MOST_ROWS = 24, 96


@dataclass(frozen=True)
class Answers:
    """Prompts, answers, and the general model's distribution at each token of the answers.

    Attributes:
        prompts: tokens of each prompt, the chat template's included.
        answers: tokens of each answer, at least one; the last may end the turn.
        top_tokens: likeliest tokens at each token of each answer, `[T, K]` each.
        top_logs: their log probabilities, `[T, K]` each.
        rest_logs: log probability of all others together, `[T]` each.
        note: what a reader should know of how they were asked; empty where there is nothing.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    top_tokens: list[Tensor]
    top_logs: list[Tensor]
    rest_logs: list[Tensor]
    note: str = ""


NO_TEMPLATE = "the model has no chat template: prompts are plain text"

_DAY = datetime(2024, 7, 26, 12, tzinfo=timezone.utc)
"""What templates that write the day write: prompts, the answers to them and the hashes of both
would be others tomorrow. It is what Llama's templates write where they know no day."""

DATED = f"its chat template writes the day, which is {_DAY:%d %B %Y} whenever it is asked"

_TEMPLATE = ("its chat template cannot be used", "mend or remove it")


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", None) or "the tokenizer")


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> tuple[list[list[int]], str]:
    """Tokens of prompts through the chat template, or as they stand where the model has none.

    Returns:
        Tokens of each prompt, and what a reader should know of how they were made.
    """
    if template := getattr(tokenizer, "chat_template", None):
        encoded_prompts = []
        is_dated = "strftime_now" in str(template)
        settings = {"chat_template": _pin_day(tokenizer.get_chat_template())} if is_dated else {}
        for prompt in prompts:
            # A template is a stranger's program: its errors become sentences, and its time and
            # memory are bounded.
            with reading(_name(tokenizer), EvaluationError, *_TEMPLATE), bounded_template():
                chat_tokens = tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    add_generation_prompt=True,
                    tokenize=True,
                    # Asked for, as releases of transformers differ in what they return by default.
                    return_dict=True,
                    **settings,
                )
            encoded_prompts.append(chat_tokens["input_ids"])
        prompt_tokens = [list(map(int, tokens)) for tokens in encoded_prompts]
        return prompt_tokens, DATED if is_dated else ""
    return [list(map(int, tokenizer.encode(f"{prompt}\n"))) for prompt in prompts], NO_TEMPLATE


def _pin_day(template: str) -> str:
    """A chat template with a function of its own in place of the one that tells the day: what it is
    given beside its messages can be texts and numbers, but no function."""
    parts = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAdbBmyYHIpMSjcxX"]
    filled = "".join(f" | replace('{part}', '{_DAY.strftime(part)}')" for part in parts)
    # The environment takes the line end after a block away.
    return f"{{% macro strftime_now(form) %}}{{{{ form{filled} }}}}{{% endmacro %}}\n{template}"


def load_answers(
    tokenizer: Any,
    prompts: Sequence[str],
    load_general: Callable[[], Any],
    general_hash: str,
    folder: Path,
    *,
    max_new_tokens: int,
    top_tokens: int,
    advance: Callable[[float, str], None] | None = None,
) -> Answers:
    """The answers from their cache; what is missing there is made, block by block.

    Args:
        tokenizer: tokenizer of the general model.
        prompts: texts of the prompts.
        load_general: loads the general model; called only where answers are missing.
        general_hash: hash of its content and of the type it is loaded in.
        folder: folder of the cache.
        max_new_tokens: longest answer.
        top_tokens: K; 0 keeps the answers alone.
        advance: told how many prompts are done.
    """
    encoded_prompts, note = encode_prompts(tokenizer, prompts)
    answer_blocks: list[Answers] = []
    general_model = None
    longest_text = max(map(len, encoded_prompts), default=0) + max_new_tokens
    block_rows = min(max(_BLOCK_TOKENS // longest_text, _LEAST_ROWS), _MOST_ROWS)
    for first_row in range(0, len(encoded_prompts), block_rows):
        block = encoded_prompts[first_row : first_row + block_rows]
        # Its own prompts are in the key: prompts added at the end leave earlier blocks known.
        block_path = folder / f"{hash_json([general_hash, block, max_new_tokens, top_tokens])}.npz"
        block_answers = _read(block_path, block)
        if block_answers is None:
            general_model = load_general() if general_model is None else general_model
            block_answers = make_answers(
                general_model, tokenizer, block, max_new_tokens, top_tokens
            )
            _write(block_path, block_answers)
        answer_blocks.append(block_answers)
        if advance is not None:
            advance(len(block), "")
    return Answers(
        prompts=[tokens for answer_block in answer_blocks for tokens in answer_block.prompts],
        answers=[tokens for answer_block in answer_blocks for tokens in answer_block.answers],
        top_tokens=[values for answer_block in answer_blocks for values in answer_block.top_tokens],
        top_logs=[values for answer_block in answer_blocks for values in answer_block.top_logs],
        rest_logs=[values for answer_block in answer_blocks for values in answer_block.rest_logs],
        note=note,
    )


@torch.inference_mode()
def make_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    top_tokens: int,
) -> Answers:
    """Answer prompts greedily, and keep the distributions behind the answers; with no tokens of
    them to be kept, the answers alone.

    Raises:
        EvaluationError: the model's probabilities are not numbers, or a prompt is longer than what
            it reads.
    """
    model.eval()
    longest_tokens, longest_prompt = longest_input(model), max(prompts, key=len, default=[])
    if longest_tokens is not None and len(longest_prompt) + max_new_tokens > longest_tokens:
        raise EvaluationError(
            f"{_name(tokenizer)}: a prompt has {len(longest_prompt)} tokens and its answer up to "
            f"{max_new_tokens}, but the model reads {longest_tokens} together "
            f"({tokenizer.decode(longest_prompt)!r:.60}); shorten it, or max_new_tokens."
        )
    answers = greedy_answers(model, stops_of(model, tokenizer), prompts, max_new_tokens)
    if not top_tokens:
        nothing = [torch.empty(0)] * len(answers)
        return Answers(list(prompts), answers, nothing, nothing, nothing)
    return Answers(list(prompts), answers, *top_distributions(model, prompts, answers, top_tokens))


@torch.inference_mode()
def top_distributions(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    top_tokens: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A model's distribution at each token of answers: the likeliest tokens, their log
    probabilities, and that of all others together; of each answer `[T, K]` twice, and `[T]`.

    Raises:
        EvaluationError: the model's probabilities are not numbers.
    """
    top_by_answer: list[Tensor] = [torch.empty(0)] * len(prompts)
    logs_by_answer: list[Tensor] = [torch.empty(0)] * len(prompts)
    rests: list[Tensor] = [torch.empty(0)] * len(prompts)
    for batch, states in answer_states(model, prompts, answers, batch_tokens=2048):
        answer_sizes = [len(answers[number]) for number in batch]
        parts = _top_of_distributions(model, states, top_tokens)
        if not bool(parts[1].isfinite().all()):
            raise EvaluationError(
                "the general model's probabilities are not numbers; its weights are damaged."
            )
        for by_answer, part in zip((top_by_answer, logs_by_answer, rests), parts, strict=True):
            for number, values in zip(batch, torch.split(part.cpu(), answer_sizes), strict=True):
                by_answer[number] = values
    return top_by_answer, logs_by_answer, rests


def _top_of_distributions(
    model: Any, states: Tensor, top_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Likeliest tokens, their log probabilities, and that of all others: `[T, K]` twice, `[T]`."""
    token_chunks, log_chunks, rest_chunks = [], [], []
    for _, logits in logit_chunks(model, states):
        # One token at least is left over, so that the rest has a probability.
        likeliest = logits.topk(min(top_tokens, logits.shape[1] - 1), dim=1)
        total = logits.logsumexp(dim=1)
        token_chunks.append(likeliest.indices)
        log_chunks.append(likeliest.values - total[:, None])
        # This overwrites the logits, so it comes last.
        rest_chunks.append(rest_log(logits, likeliest.indices, total))
    return torch.cat(token_chunks).int(), torch.cat(log_chunks), torch.cat(rest_chunks)


def rest_log(logits: Tensor, left_out: Tensor, total: Tensor) -> Tensor:
    """Log probability of all tokens but some, `[N]`; -inf where they underflow.

    Args:
        logits: `[N, V]`, changed.
        left_out: indices of those left out, `[N, K]`.
        total: logsumexp of all, `[N]`.
    """
    # Summed anew without them: 1 minus the sum of the likeliest would cancel to noise where the
    # rest is small.
    return logits.scatter_(1, left_out, -torch.inf).logsumexp(dim=1) - total


def _write(path: Path, answers: Answers) -> None:
    with write_atomically(path, "wb") as file:
        # All answers one behind the other, and their lengths: arrays of unequal rows would be
        # stored as pickles, which are never read here.
        np.savez(
            file,
            lengths=np.array([len(tokens) for tokens in answers.answers]),
            answers=np.array([token for tokens in answers.answers for token in tokens]),
            top_tokens=torch.cat(answers.top_tokens).numpy(),
            top_logs=torch.cat(answers.top_logs).numpy(),
            rest_logs=torch.cat(answers.rest_logs).numpy(),
        )


def _read(path: Path, prompts: list[list[int]]) -> Answers | None:
    try:
        with path.open("rb") as raw_file, np.load(raw_file, allow_pickle=False) as file:
            stored_arrays = {array_name: file[array_name] for array_name in file.files}
        answer_ends = np.cumsum(stored_arrays["lengths"]).tolist()
        # The hash in the name covers the prompts; a count that differs is a damaged file.
        spans = list(zip([0, *answer_ends[:-1]], answer_ends, strict=True))
        if len(spans) != len(prompts):
            return None
        return Answers(
            prompts=prompts,
            answers=[stored_arrays["answers"][a:b].tolist() for a, b in spans],
            top_tokens=[torch.from_numpy(stored_arrays["top_tokens"][a:b]) for a, b in spans],
            top_logs=[torch.from_numpy(stored_arrays["top_logs"][a:b]) for a, b in spans],
            rest_logs=[torch.from_numpy(stored_arrays["rest_logs"][a:b]) for a, b in spans],
        )
    except Exception:  # absent, or damaged in one of the ways that an archive can be
        return None  # made again
