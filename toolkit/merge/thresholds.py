"""Trimming thresholds over whole models, as in the TIES paper: one pass over all tensors first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.read import is_float
from toolkit.errors import ConfigError
from toolkit.merge.compute import row_reader
from toolkit.merge.kernels import trimmed
from toolkit.merge.kernels.fast import ReadRows, Rows, entries_of_bin, select
from toolkit.merge.kernels.workers import Workers
from toolkit.merge.models import Models
from toolkit.merge.plan import MergePlan, TensorTask

ScalarT = TypeVar("ScalarT", bound=np.generic)


def with_thresholds(plan: MergePlan, models: Models, workers: Workers) -> MergePlan:
    """Give every task the magnitude at which each model's task vector, as a whole, is trimmed.

    Args:
        plan: of a method that needs thresholds; others are returned as they are.
        models: what the tensors are read from.
        workers: threads.

    Raises:
        ConfigError: a density differs between tensors, so that it is none of the whole model.
    """
    if not plan.method.needs_thresholds:
        return plan
    densities = {task.parameters["density"] for task in plan.tasks}
    if len(densities) > 1:
        raise ConfigError(
            f"density: {plan.method.name} trims each model as a whole, so it must be one number a "
            "model, without filters and gradients."
        )
    merged = (task for task in plan.tasks if not task.is_copied)
    tasks = [task for task in merged if is_float(models.dtype(task.sources[0]))]
    found = tuple(
        _threshold(tasks, model, density, models, workers)
        for model, density in enumerate(next(iter(densities)))
    )
    return replace(plan, tasks=tuple(replace(task, thresholds=found) for task in plan.tasks))


def _threshold(
    tasks: Sequence[TensorTask], model: int, density: float, models: Models, workers: Workers
) -> float:
    total = sum(task.size for task in tasks)
    if density >= 1.0 or density <= 0.0:
        return 0.0  # nothing is trimmed, or all of it, whatever the magnitude
    rank = total - max(1, int(density * total)) + 1
    cumulative = np.cumsum(np.sum(_over_blocks(tasks, model, models, workers, _coarse), axis=0))
    index = int(np.searchsorted(cumulative, rank))
    rest = rank - (int(cumulative[index - 1]) if index else 0)

    def collect(rows: Rows) -> NDArray[np.uint16]:
        return entries_of_bin(rows, 0, index, rows[0].size)

    return select(np.concatenate(_over_blocks(tasks, model, models, workers, collect)), index, rest)


def _coarse(rows: Rows) -> NDArray[np.int64]:
    counts = np.zeros(trimmed.BINS, np.int64)
    trimmed.coarse_histogram(rows, 0, counts)
    return counts


def _on_block(
    act: Callable[[Rows], NDArray[ScalarT]], rows: ReadRows, start: int, stop: int
) -> NDArray[ScalarT]:
    return act(rows(start, stop))


def _over_blocks(
    tasks: Sequence[TensorTask],
    model: int,
    models: Models,
    workers: Workers,
    act: Callable[[Rows], NDArray[ScalarT]],
) -> list[NDArray[ScalarT]]:
    """`act` on every block of every tensor; of histograms, one sum a tensor is kept."""
    results: list[NDArray[ScalarT]] = []
    for task in tasks:
        assert task.base is not None  # noqa: S101  (methods with thresholds need a base)
        rows = row_reader([models.array(source) for source in (task.sources[model], task.base)])
        parts = workers.each(task.size, functools.partial(_on_block, act, rows))
        results += [np.sum(parts, axis=0)] if act is _coarse else parts
    return results
