"""Merges in memory: candidates written straight into a loaded model, dozens of times.

What does not depend on a candidate's numbers is kept from one to the next: a magnitude histogram a
tensor answers any density, the angle between two tensors any `t`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.checkpoint.models import Models, Shapes, Source
from toolkit.checkpoint.stored_names import StoredTensors, parameters_by_name
from toolkit.checkpoint.write import dtype_name
from toolkit.errors import MergeError
from toolkit.merge.compute import (
    ComputeSettings,
    Destination,
    NonFiniteError,
    blame_input,
    run_task,
)
from toolkit.merge.config import MergeConfig
from toolkit.merge.kernels.job import JobMemory
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.plan import MergePlan, plan_merge
from toolkit.merge.rounding import StochasticRounding
from toolkit.merge.thresholds import with_thresholds

__all__ = ["LiveMerge", "parameters_by_name"]

_CHUNK_ENTRIES = 1 << 16


class LiveMerge:
    """Holds the models of a search open, and makes any merge of them on demand.

    Args:
        models: folders by the names that configurations use, such as `general` and `specialist`.
        seed: of random methods.
        num_threads: all cores by default; no result depends on it.
    """

    def __init__(
        self, models: Mapping[str, Path], *, seed: int = 0, num_threads: int | None = None
    ) -> None:
        self._models = Models(models)
        self._workers = WorkerThreads(num_threads)
        self._settings = ComputeSettings(seed, self._workers)
        self._memory: dict[tuple[tuple[Source, ...], Source | None], JobMemory] = {}
        self._shapes = {name: self._models.shapes(name) for name in models}
        # Of the last model alone: what is kept of one holds the whole model in memory.
        self._stored: tuple[Any, StoredTensors] | None = None

    def shapes(self, name: str) -> Shapes:
        return self._shapes[name]

    def plan(self, config: MergeConfig) -> MergePlan:
        """Every tensor of a merge, with its parameters."""
        return plan_merge(config, self.shapes, self._models.config)

    @torch.no_grad()
    def apply(self, config: MergeConfig, model: Any) -> None:
        """Write a merge into a loaded model, in the model's own type: the bytes that `run_merge`
        would write to a file of that type.

        Args:
            config: whose models are among those held.
            model: of the same architecture, on the CPU; its parameters are overwritten.

        Raises:
            MergeError: the model lacks a tensor of the merge, or an input is damaged.
        """
        plan = with_thresholds(self.plan(config), self._models, self._workers)
        stored = StoredTensors(model, {task.name: task.shape for task in plan.tasks})
        self._stored = model, stored
        merge_targets = stored.targets
        # The model has its own of what is copied, and loads nothing of what it passes over.
        passed_over = {task.name for task in plan.tasks if task.is_copied} | {*stored.ignored}
        merged_tasks = [task for task in plan.tasks if task.name not in passed_over]
        if lacking := [task.name for task in merged_tasks if task.name not in merge_targets]:
            raise MergeError(f"{lacking[0]}: the loaded model has no such tensor to merge into.")
        is_random = config.rounding == "stochastic"
        rounding = StochasticRounding(self._settings.seed) if is_random else None
        settings = replace(self._settings, rounding=rounding)
        flat_targets = [merge_targets[task.name].detach().view(-1) for task in merged_tasks]

        def merge(index: int) -> None:
            task, flat_target = merged_tasks[index], flat_targets[index]

            def put(start: int, data: memoryview) -> None:
                # A copy: the kernel may hand out a piece of a buffer that it fills again.
                block = torch.frombuffer(bytearray(data), dtype=flat_target.dtype)
                flat_target[start : start + block.numel()] = block

            destination = Destination(dtype_name(flat_target.dtype), put, _array(flat_target))
            # By sources alone: what is kept of a tensor serves every candidate that merges the same
            # ones.
            memory = self._memory.setdefault((task.sources, task.base), {})
            try:
                run_task(plan.method, task, self._models, destination, settings, memory)
            except NonFiniteError:
                words = blame_input(task, self._models)
                raise MergeError(f"{words} Get it again, or train it anew.") from None

        self._workers.tensors([flat.numel() for flat in flat_targets], merge)
        # What transformers holds in another form was written beside the model, and is converted
        # now.
        stored.finish()

    @torch.no_grad()
    def distance(self, model: Any, name: str) -> float:
        """Root of the summed squares between a loaded model and one of those held."""
        total_square = 0.0
        checkpoint = self._models.checkpoint(name)
        if self._stored is None or self._stored[0] is not model:
            self._stored = model, StoredTensors(model, self._shapes[name])
            self._stored[1].read()
        stored_targets = self._stored[1].targets
        for tensor in checkpoint.names:
            if tensor not in stored_targets:
                continue  # not of the model
            ours, theirs = stored_targets[tensor].reshape(-1), checkpoint.tensor(tensor).reshape(-1)
            for chunk_start in range(0, len(ours), _CHUNK_ENTRIES):  # as much as stays in the cache
                stop = chunk_start + _CHUNK_ENTRIES
                difference = ours[chunk_start:stop].float() - theirs[chunk_start:stop].float()
                total_square += float(torch.dot(difference, difference))
        return math.sqrt(total_square)


def _array(flat: Tensor) -> NDArray[Any]:
    """A tensor's own memory as an array; bfloat16 as its bits."""
    if flat.dtype == torch.bfloat16:
        # numpy has no bfloat16: torch hands its bits out as int16, and the same bits serve as
        # uint16.
        return flat.view(torch.int16).numpy().view(np.uint16)
    return flat.numpy()
