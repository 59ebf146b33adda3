"""Staying near the general model on conversations that it wrote itself.

Continued pre-training moves a model wherever its loss on raw text leads. Beside it, every step adds
the divergence from the general model on text of the general model's own, which costs a quarter more
tokens and no teacher in memory: what it thought of each token was kept when it wrote them.

Legend: C conversations, T tokens of a row, N positions that are kept, K tokens of a distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from toolkit.data.packing import pack_best_fit
from toolkit.errors import DataError
from toolkit.leftovers import appearing_file
from toolkit.statistics.seeds import named_seed
from toolkit.train.config import SelfDistillationSection
from toolkit.train.layout import IGNORED
from toolkit.train.loss import TeacherDistributions

CONVERSATIONS = "conversations.safetensors"


@dataclass(frozen=True)
class Conversation:
    """A text that the general model wrote, and what it thought of each token.

    Attributes:
        tokens: of all of it, the template's included.
        first_written: place of the first token that the model wrote itself, at least 1.
        teacher: its distributions at that token and all after it.
    """

    tokens: list[int]
    first_written: int
    teacher: TeacherDistributions

    def cut(self, length: int) -> Conversation:
        """Its beginning."""
        kept = max(0, min(len(self.tokens), length) - self.first_written)
        return Conversation(self.tokens[:length], self.first_written, self.teacher.at(slice(kept)))


def save_conversations(path: Path, conversations: list[Conversation]) -> None:
    """Write conversations to a file that appears whole."""
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[np.generic]] = {
        "tokens": np.array([t for one in conversations for t in one.tokens], np.int32),
        "lengths": np.array([len(one.tokens) for one in conversations], np.int32),
        "first_written": np.array([one.first_written for one in conversations], np.int32),
    }
    for name, dtype in (
        ("top_tokens", np.int32),
        ("top_logs", np.float32),
        ("rest_logs", np.float32),
    ):
        parts = [getattr(one.teacher, name) for one in conversations]
        arrays[name] = torch.cat(parts).cpu().numpy().astype(dtype)
    with appearing_file(path) as temporary:
        save_file(arrays, temporary)


def load_conversations(path: Path) -> list[Conversation]:
    """Read conversations.

    Raises:
        DataError: the file cannot be read, or its parts do not fit each other.
    """
    try:
        arrays = load_file(path)
        tokens, lengths = arrays["tokens"], arrays["lengths"].tolist()
        firsts = arrays["first_written"].tolist()
        teacher = TeacherDistributions(
            torch.from_numpy(arrays["top_tokens"].astype(np.int64)),
            torch.from_numpy(arrays["top_logs"]),
            torch.from_numpy(arrays["rest_logs"]),
        )
    except Exception as error:  # absent, or damaged in one of the ways that safetensors finds
        raise DataError(
            f"{path}: cannot be read ({error}); remove its folder, run again."
        ) from error
    written = [length - first for length, first in zip(lengths, firsts, strict=True)]
    spans = list(pairwise(accumulate(lengths, initial=0)))
    kept_spans = list(pairwise(accumulate(written, initial=0)))
    if sum(lengths) != len(tokens) or sum(written) != len(teacher.rest_logs) or min(firsts) < 1:
        raise DataError(f"{path}: its parts do not fit each other; remove the folder, run again.")
    return [
        Conversation(tokens[a:b].tolist(), first, teacher.at(slice(c, d)))
        for (a, b), (c, d), first in zip(spans, kept_spans, firsts, strict=True)
    ]


@dataclass(frozen=True)
class DistillationRow:
    """What one process computes of a step's conversations.

    Attributes:
        input_ids: `[1, T]` int64.
        labels: `[1, T]` int64: which of the teacher's distributions belongs to the next token.
        segments: `[1, T]` int64, the number of the conversation, -1 in padding.
        teacher: distributions, `[N]`.
        num_targets: tokens of the step whose distribution is to be kept, over all processes.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    teacher: TeacherDistributions
    num_targets: int


class SelfDistillation:
    """Which conversations every step stays near to: a pure function of the step's number.

    Args:
        section: settings.
        conversations: of the general model, or of the model in training with what the general
            model thinks of each token.
        seed: of the run.
        reverse: whether the divergence is KL(model in training || general model).
    """

    def __init__(
        self,
        section: SelfDistillationSection,
        conversations: list[Conversation],
        seed: int,
        *,
        reverse: bool = False,
    ) -> None:
        self.section, self.reverse = section, reverse
        # One more than a row holds: the last token of a conversation is a target and never an
        # input.
        self._conversations = [one.cut(section.tokens_per_step + 1) for one in conversations]
        self._seed = seed

    @cached_property
    def bundles(self) -> list[list[int]]:
        """Conversations that fit into a step together, by their numbers; each stands in one."""
        lengths = np.array([len(one.tokens) - 1 for one in self._conversations])
        table = pack_best_fit(lengths, self.section.tokens_per_step)
        return [table.document[a:b].tolist() for a, b in pairwise(table.first)]

    def _of_step(self, step: int) -> list[Conversation]:
        this_pass, place = divmod(step, len(self.bundles))
        # Every pass over the conversations has an order of its own, which follows from its number:
        # a resumed run has nothing to remember.
        seed = named_seed(self._seed, "self-distillation", "pass", str(this_pass))
        order = np.random.default_rng(seed).permutation(len(self.bundles))
        bundle = self.bundles[int(order[place])]
        return [self._conversations[number] for number in bundle]

    def row(self, step: int, process: int = 0, num_processes: int = 1) -> DistillationRow:
        """What a process computes of a step; rows of all processes are alike in length.

        Args:
            step: number of the step, from 0.
            process: its number.
            num_processes: among how many the step's conversations are shared out.
        """
        step_conversations = self._of_step(step)
        num_targets = sum(len(one.teacher.rest_logs) for one in step_conversations)
        conversations = step_conversations[process::num_processes]
        shape = (1, self.section.tokens_per_step)
        input_ids = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        segments = np.full(shape, -1, np.int64)
        place = num_kept = 0
        for number, one in enumerate(conversations):
            stop = place + len(one.tokens) - 1
            kept = len(one.teacher.rest_logs)
            input_ids[0, place:stop] = one.tokens[:-1]
            labels[0, stop - kept : stop] = np.arange(num_kept, num_kept + kept)
            segments[0, place:stop] = number
            place, num_kept = stop, num_kept + kept
        teacher = _joined(conversations)
        return DistillationRow(input_ids, labels, segments, teacher, num_targets)


def _joined(conversations: list[Conversation]) -> TeacherDistributions:
    if not conversations:  # more processes than conversations in the step
        nothing: Tensor = torch.zeros(0)
        return TeacherDistributions(torch.zeros(0, 1, dtype=torch.int64), nothing[:, None], nothing)
    return TeacherDistributions(
        *(
            torch.cat([getattr(one.teacher, name) for one in conversations])
            for name in ("top_tokens", "top_logs", "rest_logs")
        )
    )
