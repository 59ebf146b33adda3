"""Made-up conversations, with a made-up teacher's distributions."""

from __future__ import annotations

import numpy as np
import torch

from toolkit.train.loss import TeacherDistributions
from toolkit.train.self_distillation import Conversation

VOCABULARY = 300


def teacher_of(logits: torch.Tensor, kept: int) -> TeacherDistributions:
    logs = logits.double().log_softmax(dim=1)
    top = logs.topk(kept, dim=1)
    rest = logs.scatter(1, top.indices, -torch.inf).logsumexp(dim=1)
    return TeacherDistributions(top.indices, top.values.float(), rest.float())


def conversations(count: int = 12, longest: int = 30, seed: int = 0) -> list[Conversation]:
    chance, torch_chance = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        tokens = chance.integers(1, VOCABULARY, int(chance.integers(8, longest))).tolist()
        logits = torch.randn(len(tokens) - 3, VOCABULARY, generator=torch_chance) * 2
        found.append(Conversation(tokens, 3, teacher_of(logits, 5)))
    return found
