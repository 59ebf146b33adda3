"""Training stages put together: the loop, and the watch that scores while it runs."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.data.config import DataSection
from toolkit.data.encode import Encoder
from toolkit.data.sources import Document
from toolkit.errors import DataError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import ItemSet, load_items, read_rows, score_documents, windows
from toolkit.recipe.schema import Recipe
from toolkit.stage import Stage, read_manifest
from toolkit.statistics.ratios import bits_per_byte
from toolkit.tokenizer_files import load_tokenizer
from toolkit.train.config import TrainSection
from toolkit.train.model import answer_loss
from toolkit.train.monitor import ScoreRoles
from toolkit.train.precision import is_low, settle_precision
from toolkit.train.run import run_train
from toolkit.train.state import Continuation


def train_specialist(
    recipe: Recipe, stage: Stage, general: Path, data: Path, conversations: Path | None = None
) -> None:
    """Run the cpt stage of a recipe."""
    train_stage(
        recipe.train,
        recipe.data,
        recipe.evaluate,
        stage,
        general,
        data,
        conversations=conversations,
    )


def train_stage(
    section: TrainSection,
    documents: DataSection,
    evaluate: EvaluateSection,
    stage: Stage,
    model: Path,
    data: Path,
    continuation: Continuation | None = None,
    *,
    conversations: Path | None = None,
) -> None:
    """Train a model in a stage, watched on the validation sets of its data.

    Args:
        section: how to train.
        documents: what the data stage was made of.
        evaluate: how documents are scored.
        stage: where to write.
        model: folder of the model to start from.
        data: folder of the data stage.
        continuation: another run's state to begin from.
        conversations: folder of those that training stays near to.
    """
    section = settle_precision(section)
    general_sources = tuple(n for n, s in documents.sources.items() if s.role == "general")
    score_roles = make_watch(section, documents.roles, evaluate, model, data)
    run_train(
        section,
        stage,
        model,
        data,
        score_roles=score_roles,
        general_sources=general_sources,
        continuation=continuation,
        conversations=conversations,
    )


def make_watch(
    section: TrainSection,
    roles: Sequence[str],
    evaluate: EvaluateSection,
    general: Path,
    data: Path,
) -> ScoreRoles | None:
    """A function that scores the first documents of the validation sets, or None where it is off.

    Plain documents are scored whole; of conversations the assistant's words, given the rest.
    """
    if section.forgetting_monitor.evaluations == 0:
        return None
    limit = section.forgetting_monitor.tokens_per_role
    separator_token = read_manifest(data)["results"]["separator_token_id"]
    validation_path = data / "validation.jsonl"
    # Of a conversation only the assistant's words count, by its template; a role that has some is
    # scored by them alone, as the two kinds of loss do not add up to one figure.
    answers = load_answers(validation_path, general, limit)
    talking_roles = {answer.role for answer in answers}
    items = load_items(validation_path, load_tokenizer(general), separator_token)
    chosen = _first_tokens(items, limit, [role for role in roles if role not in talking_roles])
    for role in roles:
        if role not in talking_roles and not chosen.only(role):
            raise DataError(
                f"{validation_path}: holds no document of role {role} for the watch to score."
            )

    # Tensors made in inference mode may not be changed later, but FSDP keeps the ones it gathered.
    score = inspect.unwrap(score_documents)

    @torch.no_grad()
    def watch(model: Any) -> dict[str, float]:
        device = next(model.parameters()).device
        # In the arithmetic of training: a jump between two would look like learning.
        with torch.autocast(device.type, torch.bfloat16, enabled=is_low(section)):
            nats = score(model, chosen, evaluate)
            nats_by_role = {role: sum(nats[n] for n in chosen.only(role)) for role in roles}
            for answer in answers:
                nats_by_role[answer.role] += _answer_nats(model, answer, evaluate)
        sizes = {role: sum(chosen.num_bytes[n] for n in chosen.only(role)) for role in roles}
        for answer in answers:
            sizes[answer.role] += answer.num_bytes
        # Nats and bytes are added up first: a mean over documents would let short ones rule.
        return {role: bits_per_byte(nats_by_role[role], sizes[role]) for role in roles}

    return watch


@dataclass(frozen=True)
class Answer:
    """A conversation to score.

    Attributes:
        role: of its source.
        tokens: of all of it, through the chat template.
        targets: which of them the assistant says.
        num_bytes: UTF-8 length of what the assistant says.
    """

    role: str
    tokens: list[int]
    targets: list[bool]
    num_bytes: int


def _answer_nats(model: Any, answer: Answer, evaluate: EvaluateSection) -> float:
    """Nats of what the assistant says, in windows as documents are scored: one pass over all of it
    may need more positions, and more memory, than there are."""
    nats, start = 0.0, 1  # the first token is only read
    token_windows = windows(answer.tokens, evaluate.window_tokens, evaluate.context_tokens)
    for inputs, predicted in token_windows:
        targets = answer.targets[start : start + len(predicted)]
        start += len(predicted)
        if any(targets):
            context = [False] * (len(inputs) + 1 - len(predicted))
            nats += answer_loss(model, [*inputs, predicted[-1]], [*context, *targets])
    return nats


def load_answers(path: Path, tokenizer_folder: Path, limit: int) -> list[Answer]:
    """The first conversations of an evaluation set, up to so many tokens a role."""
    rows = read_rows(path)
    encoder = Encoder(tokenizer_folder, 0)
    answers: list[Answer] = []
    tokens_by_role: Counter[str] = Counter()
    # Passed over and not ended at the limit: rows of all roles stand mixed in the file.
    for row in rows:
        if not row.get("messages") or tokens_by_role[row["role"]] >= limit:
            continue
        messages = json.dumps(row["messages"])
        document = Document(row["id"], "", row["group"], row["text"], messages)
        (encoded,) = encoder.encode([document])
        tokens_by_role[row["role"]] += len(encoded.tokens)
        assistant_texts = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        num_bytes = sum(len(text.encode()) for text in assistant_texts)
        # None means that every token is learned from.
        targets = encoded.targets or [True] * len(encoded.tokens)
        answers.append(Answer(row["role"], encoded.tokens, targets, num_bytes))
    return answers


def _first_tokens(items: ItemSet, limit: int, roles: list[str]) -> ItemSet:
    # Always the first ones: figures of two steps must be of the same documents.
    chosen_rows: list[int] = []
    for role in roles:
        tokens_so_far = 0
        for index in items.only(role):
            if tokens_so_far >= limit:
                break
            chosen_rows.append(index)
            tokens_so_far += len(items.tokens[index])
    return ItemSet(
        [items.ids[n] for n in chosen_rows],
        [items.roles[n] for n in chosen_rows],
        [items.num_bytes[n] for n in chosen_rows],
        [items.tokens[n] for n in chosen_rows],
    )
