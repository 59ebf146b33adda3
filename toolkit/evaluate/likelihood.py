"""Loss of documents under a model.

Legend: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from typing_extensions import NotRequired

from toolkit.data.document_tokens import document_tokens
from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection, EvaluationRole
from toolkit.evaluate.head import can_pad, final_hidden, picked_log_probabilities
from toolkit.json_lines import iterate_rows


@dataclass(frozen=True)
class ItemSet:
    """Documents to score.

    Attributes:
        ids: of each document.
        roles: `domain` or `general`, of each.
        num_bytes: UTF-8 length of each.
        tokens: of each, with BOS or the separator in front, which is only context.
    """

    ids: list[str]
    roles: list[str]
    num_bytes: list[int]
    tokens: list[list[int]]

    def only(self, role: str) -> list[int]:
        """Indices of the documents of one role."""
        return [index for index, item in enumerate(self.roles) if item == role]

    def at(self, rows: Sequence[int]) -> ItemSet:
        """The documents at these indices, in this order."""
        return ItemSet(
            [self.ids[n] for n in rows],
            [self.roles[n] for n in rows],
            [self.num_bytes[n] for n in rows],
            [self.tokens[n] for n in rows],
        )


class EvaluationRow(TypedDict):
    """A line of a data stage's `validation.jsonl` or `test.jsonl`, as evaluation reads it."""

    id: str
    role: EvaluationRole
    text: str
    source: NotRequired[str]
    group: NotRequired[str]
    messages: NotRequired[list[dict[str, str]]]


def read_rows(path: Path) -> list[EvaluationRow]:
    """The documents of a data stage's `validation.jsonl` or `test.jsonl`.

    Raises:
        EvaluationError: it is missing, holds no documents, or a line of it cannot be read.
    """
    document_rows = []
    for line_place, row in iterate_rows(path, EvaluationError, "run the data stage again"):
        for row_key in ("id", "role", "text"):
            if not isinstance(row.get(row_key), str):
                raise EvaluationError(f"{line_place}: has no {row_key}; run the data stage again.")
        document_rows.append(cast(EvaluationRow, row))
    if not document_rows:
        raise EvaluationError(f"{path}: holds no documents; check the splits of the recipe.")
    return document_rows


def load_items(path: Path, tokenizer: Any, separator: int) -> ItemSet:
    """Read `validation.jsonl` or `test.jsonl` of a data stage.

    Raises:
        EvaluationError: the file holds no documents.
    """
    document_rows = read_rows(path)
    return ItemSet(
        ids=[row["id"] for row in document_rows],
        roles=[row["role"] for row in document_rows],
        num_bytes=[len(row["text"].encode()) for row in document_rows],
        tokens=document_tokens(tokenizer, [row["text"] for row in document_rows], separator),
    )


@dataclass(frozen=True)
class _TokenWindow:
    document: int
    inputs: list[int]
    targets: list[int]  # the last ones of the window; the rest is context


def windows(tokens: Sequence[int], length: int, context: int) -> list[tuple[list[int], list[int]]]:
    """Cut a document into windows, so that every token but the first is scored exactly once.

    Args:
        tokens: of the document; the first is context only.
        length: inputs of a window at most.
        context: inputs of each further window that were already scored, at least 1. The last
            window is as long as the others, so it sees more; lm-eval does the same.

    Returns:
        `(inputs, targets)` of each window; the targets follow the last inputs.

    >>> windows([9, 1, 2, 3, 4, 5], 3, 1)
    [([9, 1, 2], [1, 2, 3]), ([2, 3, 4], [4, 5])]
    >>> windows([9, 1, 2, 3, 4, 5, 6], 3, 1)
    [([9, 1, 2], [1, 2, 3]), ([3, 4, 5], [4, 5, 6])]
    """
    if length < context:  # no window would reach a token that is not scored yet, and none the end
        raise ValueError(f"windows of {length} tokens that look back at {context}")
    token_windows: list[tuple[list[int], list[int]]] = []
    num_scored = 1
    while num_scored < len(tokens):
        # The first window begins with what is context only; any further one looks back.
        first_input = 0 if num_scored == 1 else num_scored - context
        stop = min(first_input + length, len(tokens) - 1)
        # The last window is moved back to full length: its first tokens see more, and none is
        # scored twice.
        first_input = max(0, stop - length)
        token_windows.append((list(tokens[first_input:stop]), list(tokens[num_scored : stop + 1])))
        num_scored = stop + 1
    return token_windows


@torch.inference_mode()
def score_documents(
    model: Any,
    items: ItemSet,
    section: EvaluateSection,
    *,
    advance: Callable[[float, str], None] | None = None,
) -> list[float]:
    """Loss of each document in nats: minus the log likelihood of all its tokens.

    Args:
        model: a causal language model, in the type it is to be scored in.
        items: the documents.
        section: window, context and batch sizes.
        advance: told how many tokens are done.

    Raises:
        EvaluationError: a loss is not a finite number.
    """
    token_windows = [
        _TokenWindow(document, *window)
        for document, tokens in enumerate(items.tokens)
        for window in windows(tokens, section.window_tokens, section.context_tokens)
    ]
    # Longest first: like lengths share a batch, and what does not fit into memory fails at once.
    token_windows.sort(key=lambda window: -len(window.inputs))
    nats_by_document = [0.0] * len(items.tokens)
    model.eval()
    for batch in _batches(token_windows, section.batch_tokens if can_pad(model) else 1):
        for window, loss in zip(batch, _window_losses(model, batch), strict=True):
            nats_by_document[window.document] += loss
        if advance is not None:
            advance(sum(len(window.inputs) for window in batch), "")
    for name, loss in zip(items.ids, nats_by_document, strict=True):
        if not loss < float("inf"):
            raise EvaluationError(f"{name}: the loss is {loss}; the model's weights are damaged.")
    return nats_by_document


def _batches(token_windows: list[_TokenWindow], batch_tokens: int) -> list[list[_TokenWindow]]:
    batches: list[list[_TokenWindow]] = []
    for window in token_windows:
        # Windows come in falling length, so the first of a batch is as wide as the batch.
        if batches and len(batches[-1][0].inputs) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches


def _window_losses(model: Any, batch: list[_TokenWindow]) -> list[float]:
    """Padding stands at the right end, where causal attention never looks."""
    longest_window = len(batch[0].inputs)
    inputs = torch.zeros(len(batch), longest_window, dtype=torch.long)
    for row, window in enumerate(batch):
        inputs[row, : len(window.inputs)] = torch.tensor(window.inputs)
    hidden = final_hidden(model, inputs)
    window_ends = [(len(window.inputs), len(window.targets)) for window in batch]
    states = [hidden[row, stop - count : stop] for row, (stop, count) in enumerate(window_ends)]
    all_targets = [token for window in batch for token in window.targets]
    log_probabilities = picked_log_probabilities(model, torch.cat(states), all_targets)
    window_parts = torch.split(log_probabilities, [count for _, count in window_ends])
    # In float64: thousands of tokens of a long document would lose digits in float32.
    return [-float(part.sum(dtype=torch.float64)) for part in window_parts]
