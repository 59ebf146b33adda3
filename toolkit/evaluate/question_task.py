"""Questions with options as a task of lm-eval: question files and BIG-bench's, each as it reads.

Legend: Q options of a question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import MultipleChoiceTask

from toolkit.evaluate.questions import Question

QUESTION_UNITS = {"acc": "error", "acc_norm": "error", "log_loss": "nats per question"}
"""Unit of a set's figure by metric."""


class QuestionTask(MultipleChoiceTask):  # type: ignore[misc]  # lm-eval has no types
    """A task whose documents are questions, zero-shot; several options may be right.

    Args:
        name: of the task.
        questions: its documents.
    """

    VERSION = 1
    """Part of the key that scores are kept under: another way of scoring is another version."""

    def __init__(self, name: str, questions: Sequence[Question]) -> None:
        # Before the base class, whose constructor calls `download`.
        self._questions = list(questions)
        super().__init__()
        for config_key, config_value in (
            ("task", name),
            ("output_type", "multiple_choice"),
            ("num_fewshot", 0),
            ("doc_to_choice", "options"),
        ):
            self.set_config(config_key, config_value)

    def download(self, *_args: Any, **_settings: Any) -> None:
        """The questions are there already."""
        self.dataset = {"test": self._questions}

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[Question]:
        return self._questions

    def doc_to_text(self, doc: Question) -> str:
        return doc.prompt

    def doc_to_choice(self, doc: Question) -> list[str]:
        return list(doc.options)

    def doc_to_target(self, doc: Question) -> list[int]:
        return list(doc.answers)

    def construct_requests(self, doc: Question, ctx: str, **settings: Any) -> list[Instance]:
        return [
            Instance(
                request_type="loglikelihood",
                doc=doc,
                arguments=(ctx, doc.delimiter + option),
                idx=number,
                metadata=settings["metadata"],
            )
            for number, option in enumerate(doc.options)
        ]

    def process_results(
        self, doc: Question, results: Sequence[tuple[float, bool]]
    ) -> dict[str, float]:
        return score_question(doc, [log_likelihood for log_likelihood, _ in results])

    def aggregation(self) -> dict[str, Callable[..., float]]:
        return dict.fromkeys(QUESTION_UNITS, mean)

    def higher_is_better(self) -> dict[str, bool]:
        return {"acc": True, "acc_norm": True, "log_loss": False}


def score_question(question: Question, log_likelihoods: Sequence[float]) -> dict[str, float]:
    """Metrics of one question: whether its likeliest option is right, the same with log likelihoods
    divided by the options' characters, and minus the log of the right options' share among all.

    Args:
        question: what was asked.
        log_likelihoods: of its options, in nats, `[Q]`.

    >>> question = Question("q", "q", "?", ("yes", "certainly"), " ", (1,))
    >>> {name: round(value, 4) for name, value in score_question(question, [-3.0, -4.5]).items()}
    {'acc': 0.0, 'acc_norm': 1.0, 'log_loss': 1.7014}
    """
    log_values = np.asarray(log_likelihoods, dtype=np.float64)
    # Characters of the text, not tokens: lm-eval's acc_norm, which no tokenizer changes.
    option_lengths = np.array([float(len(option)) for option in question.options])
    right_options = set(question.answers)
    return {
        "acc": float(int(np.argmax(log_values)) in right_options),
        "acc_norm": float(int(np.argmax(log_values / option_lengths)) in right_options),
        "log_loss": _log_of_sum(log_values) - _log_of_sum(log_values[sorted(right_options)]),
    }


def _log_of_sum(logs: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Of what they are the logarithms of."""
    highest_log = float(logs.max())
    # The largest is taken out first: exp of the log likelihood of a long option underflows to 0.
    return highest_log + math.log(float(np.exp(logs - highest_log).sum()))
