"""Retention: how well a model still gives the general model's answers.

Two figures from one pass, both in nats per token of the answers: the loss of the answers, and the
divergence of the model's distribution from the general model's at each of their tokens. Raw text
cannot show this: any further pre-training makes an instruct model better at raw text, while its way
of answering may fade. Legend: T tokens, K tokens kept, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.forward import divergence
from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError
from toolkit.evaluate.answers import Answers, rest_log
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.head import logit_chunks
from toolkit.evaluate.prompt_files import read_prompt_files
from toolkit.evaluate.prompted import answer_states
from toolkit.evaluate.prompts import RetentionPrompt, retention_prompts
from toolkit.evaluate.sets import EvaluationSet
from toolkit.stage import hash_json

LOSS, DIVERGENCE = "retention", "retention KL"
"""Names of the two sets."""


def split_prompts(evaluate: EvaluateSection, split: SplitName) -> list[RetentionPrompt]:
    """The first prompts of one split, of all kinds in turn: ours, or those of files.

    >>> [prompt.text for prompt in split_prompts(EvaluateSection(), "validation")[:2]]
    ['Why is the sky blue?', 'Explain gravity to a child.']
    >>> [prompt.text for prompt in split_prompts(EvaluateSection(), "test")[:1]]
    ['What is the capital of Portugal?']
    """
    section = evaluate.retention
    all_prompts = (
        read_prompt_files(evaluate, "retention", split)
        if section.files
        else retention_prompts(split)
    )
    return all_prompts[: section.num_prompts]


@torch.inference_mode()
def score_answers(
    model: Any, answers: Answers, rows: Sequence[int], batch_tokens: int
) -> tuple[list[float], list[float]]:
    """Loss and divergence of answers, both summed over the tokens of each, in nats.

    Raises:
        EvaluationError: one is not a finite number.
    """
    model.eval()
    losses, divergences = [0.0] * len(rows), [0.0] * len(rows)
    prompt_tokens = [answers.prompts[answer_index] for answer_index in rows]
    answer_tokens = [answers.answers[answer_index] for answer_index in rows]
    for batch, states in answer_states(model, prompt_tokens, answer_tokens, batch_tokens):
        token_losses, token_divergences = _score_tokens(
            model, answers, [rows[batch_place] for batch_place in batch], states
        )
        answer_sizes = [len(answer_tokens[batch_place]) for batch_place in batch]
        for sums_by_answer, values in ((losses, token_losses), (divergences, token_divergences)):
            for batch_place, tokens in zip(batch, torch.split(values, answer_sizes), strict=True):
                # In float64, so that the order in which a batch adds them does not show.
                sums_by_answer[batch_place] = float(tokens.sum(dtype=torch.float64))
    for answer_figure in (*losses, *divergences):
        if not math.isfinite(answer_figure):
            raise EvaluationError(
                f"{LOSS}: a loss is {answer_figure}; the model's weights are damaged, or it gives "
                "no chance to what the general model says."
            )
    return losses, divergences


def _score_tokens(
    model: Any, answers: Answers, rows: Sequence[int], states: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and divergence at each token of some answers, one behind the other, `[T]` each."""
    device = states.device
    targets = torch.tensor([token for row in rows for token in answers.answers[row]], device=device)
    top_tokens = torch.cat([answers.top_tokens[row] for row in rows]).long().to(device)
    top_logs = torch.cat([answers.top_logs[row] for row in rows]).to(device)
    rest_logs = torch.cat([answers.rest_logs[row] for row in rows]).to(device)
    losses, divergences = torch.empty_like(rest_logs), torch.empty_like(rest_logs)
    for first_position, logits in logit_chunks(model, states):
        part = slice(first_position, first_position + len(logits))
        log_sum = logits.logsumexp(dim=1)
        losses[part] = log_sum - logits.gather(1, targets[part, None])[:, 0]
        model_logs = logits.gather(1, top_tokens[part]) - log_sum[:, None]
        # This overwrites the logits, so it comes last.
        model_rest = rest_log(logits, top_tokens[part], log_sum)
        divergences[part] = divergence(top_logs[part], rest_logs[part], model_logs, model_rest)
    return losses, divergences


def retention_sets(
    answers: Answers, prompts: Sequence[RetentionPrompt], evaluate: EvaluateSection, made_by: str
) -> list[EvaluationSet]:
    """The loss of the answers and the divergence, as two sets that one pass scores.

    Args:
        answers: the general model's.
        prompts: what they answer; those of one group are drawn together.
        evaluate: batches and roles.
        made_by: content hash of the general model.
    """
    section = evaluate.retention

    def together(model: Any, rows: Sequence[int]) -> Mapping[str, list[float]]:
        losses, divergences = score_answers(model, answers, list(rows), evaluate.batch_tokens)
        return {LOSS: losses, DIVERGENCE: divergences}

    # The pass of one gives the other, so its tokens are counted once: where they are needed first.
    bearing_set = DIVERGENCE if section.loss_role == "watch" != section.kl_role else LOSS
    both_sets = []
    # Tokens and not texts: another chat template asks in another way.
    pass_hash = hash_json([answers.prompts, answers.answers, made_by])
    for name, set_role, tolerance in (
        (LOSS, section.loss_role, section.loss_tolerance),
        (DIVERGENCE, section.kl_role, section.kl_tolerance),
    ):
        set_settings = {"kind": name, "top": section.top_tokens, "precision": evaluate.precision}
        both_sets.append(
            EvaluationSet(
                name=name,
                role=set_role,
                unit="nats per token",
                ids=[f"prompt/{hash_json(prompt.text)[:12]}" for prompt in prompts],
                groups=[f"prompt/{prompt.group}" for prompt in prompts],
                sizes=[len(tokens) for tokens in answers.answers],
                costs=[
                    len(prompt) + len(answer) - 1 if name == bearing_set else 0
                    for prompt, answer in zip(answers.prompts, answers.answers, strict=True)
                ],
                content_hash=pass_hash,
                score=lambda model, rows, name=name: together(model, rows)[name],  # type: ignore[misc]
                settings_hash=hash_json(set_settings),
                item_hashes=[hash_json(prompt.text) for prompt in prompts],
                score_together=together,
                tolerance=tolerance,
                note=answers.note,
                sequences=[
                    ([*prompt, *answer], len(answer))
                    for prompt, answer in zip(answers.prompts, answers.answers, strict=True)
                ]
                if name == LOSS
                else (),
            )
        )
    return both_sets
