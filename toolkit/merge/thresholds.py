"""Trimming thresholds over whole models, as in the TIES paper: one pass over all tensors first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import is_float
from toolkit.errors import ConfigError
from toolkit.merge.kernels.job import Job
from toolkit.merge.kernels.ranks import lower_counts, magnitude, place_of, upper_counts
from toolkit.merge.kernels.rows import RowReader, read_entries
from toolkit.merge.kernels.sizes import HALVES
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.plan import MergePlan
from toolkit.merge.task import TensorTask


def with_thresholds(plan: MergePlan, models: Models, workers: WorkerThreads) -> MergePlan:
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
    model_densities = {task.parameters["density"] for task in plan.tasks}
    if len(model_densities) > 1:
        raise ConfigError(
            f"density: {plan.method.name} trims each model as a whole, so it must be one number a "
            "model, without filters and gradients."
        )
    # What is copied or of integers has no part in the ranks: nothing of it can be trimmed.
    merged_tasks = (task for task in plan.tasks if not task.is_copied)
    float_tasks = [task for task in merged_tasks if is_float(models.dtype(task.sources[0]))]
    found = tuple(
        _threshold(float_tasks, model_number, density, models, workers)
        for model_number, density in enumerate(next(iter(model_densities)))
    )
    return replace(plan, tasks=tuple(replace(task, thresholds=found) for task in plan.tasks))


def _threshold(
    tasks: Sequence[TensorTask], model: int, density: float, models: Models, workers: WorkerThreads
) -> float:
    # Anew for each pass: of types that numpy cannot hold, a job holds the entries as float32.
    def jobs() -> Iterator[Job]:
        return (_job(task, model, models, workers) for task in tasks)

    num_entries = sum(task.size for task in tasks)
    if density >= 1.0 or density <= 0.0:
        return 0.0  # nothing is trimmed, or all of it, whatever the magnitude
    # The magnitude of this rank is found exactly from two histograms, of the upper 16 bits and then
    # of the lower 16 within the bin: nothing as large as the model is sorted or held.
    rank = num_entries - max(1, int(density * num_entries)) + 1
    zeros = np.zeros(HALVES, np.int64)
    upper_half, rest = place_of(
        np.cumsum(sum((upper_counts(job, 0) for job in jobs()), zeros)), rank
    )
    half_counts = sum((lower_counts(job, 0, upper_half) for job in jobs()), zeros)
    return magnitude(upper_half << 16 | place_of(np.cumsum(half_counts), rest)[0])


def _job(task: TensorTask, model: int, models: Models, workers: WorkerThreads) -> Job:
    assert task.base is not None  # noqa: S101  (methods with thresholds need a base)
    sources = (task.sources[model], task.base)
    rows = [read_entries(models.checkpoint(source.model), source.tensor) for source in sources]
    return Job(RowReader(rows), task.shape, {}, workers, {})
