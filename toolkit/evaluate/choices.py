"""Multiple choice: the option that the model finds likeliest, as lm-eval counts it.

Legend: Q questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection, MultipleChoiceSection
from toolkit.evaluate.prompted import Prompted, score_continuations
from toolkit.evaluate.questions import Question, load_questions
from toolkit.evaluate.sets import EvaluationSet
from toolkit.stage import hash_json

METRICS = {"acc": "error", "acc_norm": "error", "log_loss": "nats per question"}


@dataclass(frozen=True)
class Answered:
    """What a model made of a question.

    Attributes:
        log_likelihoods: of its options, in nats.
        acc: 1.0 where the likeliest option is right.
        acc_norm: the same with log likelihoods divided by the options' characters.
        log_loss: minus the log of the right options' share among all, in nats.
    """

    log_likelihoods: tuple[float, ...]
    acc: float
    acc_norm: float
    log_loss: float


def encode_question(tokenizer: Any, question: Question) -> Prompted:
    """Tokens of a question, cut between prompt and option where lm-eval cuts.

    Blanks at the end of the prompt go to the options, and an option's tokens are what the prompt's
    own tokens leave of both together, since a tokenizer may join them.
    """
    prompt = question.prompt.rstrip()
    blanks = question.prompt[len(prompt) :] + question.delimiter
    options = [blanks + option for option in question.options]
    if not question.prompt:
        start = _start_token(tokenizer)
        rests = [tokenizer.encode(text, add_special_tokens=False) for text in options]
        return Prompted([start], [rest[1:] if rest[0] == start else rest for rest in rests])
    first = _encode(tokenizer, prompt)
    whole = [_encode(tokenizer, prompt + option) for option in options]
    return Prompted(first, [tokens[len(first) :] for tokens in whole])


def _start_token(tokenizer: Any) -> int:
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in known if token is not None), 0)


def _encode(tokenizer: Any, text: str) -> list[int]:
    """With the special tokens that the tokenizer sets, but never a second beginning."""
    begun = text.startswith(tokenizer.decode([_start_token(tokenizer)]))
    return list(tokenizer.encode(text, **({"add_special_tokens": False} if begun else {})))


def answer(question: Question, log_likelihoods: Sequence[float]) -> Answered:
    """Score one question from the log likelihoods of its options.

    >>> question = Question("q", "q", "?", ("yes", "certainly"), " ", (1,))
    >>> found = answer(question, [-3.0, -4.5])
    >>> found.acc, found.acc_norm, round(found.log_loss, 4)
    (0.0, 1.0, 1.7014)
    """
    values = np.asarray(log_likelihoods, dtype=np.float64)
    lengths = np.array([float(len(option)) for option in question.options])
    right = set(question.answers)
    shift = values.max()
    whole = shift + math.log(float(np.exp(values - shift).sum()))
    mine = values[sorted(right)]
    share = mine.max() + math.log(float(np.exp(mine - mine.max()).sum()))
    return Answered(
        tuple(float(value) for value in values),
        float(int(np.argmax(values)) in right),
        float(int(np.argmax(values / lengths)) in right),
        float(whole - share),
    )


def answer_questions(
    model: Any,
    questions: Sequence[Question],
    encoded: Sequence[Prompted],
    batch_tokens: int,
    *,
    advance: Callable[[float, str], None] | None = None,
) -> list[Answered]:
    """What a model makes of each question.

    Raises:
        EvaluationError: a likelihood is not a finite number.
    """
    found = score_continuations(model, encoded, batch_tokens, advance=advance)
    for question, values in zip(questions, found, strict=True):
        if not all(math.isfinite(value) for value in values):
            raise EvaluationError(
                f"{question.id}: a log likelihood is {values}; the model's weights are damaged."
            )
    return [answer(question, values) for question, values in zip(questions, found, strict=True)]


def choices_set(
    section: MultipleChoiceSection,
    tokenizer: Any,
    evaluate: EvaluateSection,
    split: SplitName | None,
) -> EvaluationSet:
    """A set of questions; its figure is the share answered wrongly, or the mean surprise.

    Raises:
        EvaluationError: there are no questions, or one has no options or no answer.
    """
    questions = load_questions(section, split)
    encoded = [encode_question(tokenizer, question) for question in questions]
    for question, item in zip(questions, encoded, strict=True):
        if not item.prompt or not all(item.continuations):
            raise EvaluationError(
                f"evaluate.multiple_choice, {section.name}: {question.id}: its prompt or an option "
                "has no tokens; remove the question, or give every option a text."
            )

    def score(model: Any, rows: Sequence[int]) -> list[float]:
        found = answer_questions(
            model, [questions[n] for n in rows], [encoded[n] for n in rows], evaluate.batch_tokens
        )
        if section.metric == "log_loss":
            return [one.log_loss for one in found]
        return [1.0 - float(getattr(one, section.metric)) for one in found]

    return EvaluationSet(
        name=section.name,
        role=section.role,
        unit=METRICS[section.metric],
        ids=[question.id for question in questions],
        groups=[question.group for question in questions],
        sizes=[1.0] * len(questions),
        costs=[item.cost() for item in encoded],
        content_hash=hash_json(
            [
                [q.id, q.options, q.answers, item.prompt, item.continuations]
                for q, item in zip(questions, encoded, strict=True)
            ]
        ),
        score=score,
        settings_hash=hash_json(
            {"kind": "choices", "metric": section.metric, "precision": evaluate.precision}
        ),
        item_hashes=[question.content_hash() for question in questions],
    )
