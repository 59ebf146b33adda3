"""Merges in memory: candidates written straight into a loaded model, dozens of times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.read import Checkpoint, open_checkpoint
from toolkit.merge.compute import compute_tensor
from toolkit.merge.config import MergeConfig
from toolkit.merge.plan import Shapes, plan_merge


class LiveMerge:
    """Holds the models of a search open, and makes any merge of them on demand.

    Args:
        models: folders by the names that configurations use, such as `general` and `specialist`.
        seed: of random methods.
    """

    def __init__(self, models: Mapping[str, Path], *, seed: int = 0) -> None:
        self._checkpoints = {name: open_checkpoint(folder) for name, folder in models.items()}
        self._seed = seed

    def checkpoint(self, name: str) -> Checkpoint:
        return self._checkpoints[name]

    def shapes(self, name: str) -> Shapes:
        checkpoint = self._checkpoints[name]
        return {tensor: checkpoint.info(tensor).shape for tensor in checkpoint.names}

    @torch.no_grad()
    def apply(self, config: MergeConfig, model: Any) -> None:
        """Write a merge into a loaded model, in the model's own type: the bytes that `run_merge`
        would write to a file of that type.

        Args:
            config: whose models are among those held.
            model: of the same architecture; its parameters are overwritten.
        """
        plan = plan_merge(config, self.shapes)
        targets = parameters_by_name(model)
        for task in plan.tasks:
            target = targets[task.name]
            tensors = [self._checkpoints[s.model].tensor(s.tensor) for s in task.sources]
            base = (
                self._checkpoints[task.base.model].tensor(task.base.tensor)
                if task.base is not None
                else None
            )
            merged = compute_tensor(
                plan.method, task, tensors, base, seed=self._seed, dtype=target.dtype
            )
            target.copy_(merged)

    @torch.no_grad()
    def distance(self, model: Any, name: str) -> float:
        """Root of the summed squares between a loaded model and one of those held."""
        total = 0.0
        targets = parameters_by_name(model)
        checkpoint = self._checkpoints[name]
        for tensor in checkpoint.names:
            difference = targets[tensor].float() - checkpoint.tensor(tensor).float()
            total += float(difference.square().sum(dtype=torch.float64))
        return math.sqrt(total)


def parameters_by_name(model: Any) -> dict[str, Tensor]:
    """Parameters and buffers by every name a checkpoint may use for them; tied ones share one."""
    names: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    names.update(model.named_buffers())
    return names
