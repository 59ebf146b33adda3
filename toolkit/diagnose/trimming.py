"""What a merge's own trimming removed from each task vector, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from toolkit.checkpoint.models import Models
from toolkit.merge.kernels.job import Job
from toolkit.merge.kernels.ranks import kth_smallest
from toolkit.merge.kernels.rows import RowReader, as_float32
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.plan import MergePlan
from toolkit.merge.task import TensorTask

BY_MAGNITUDE = {"ties", "ties_global", "breadcrumbs", "breadcrumbs_ties"}
"""Methods whose trimming can be told from their inputs."""

AT_RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}
"""Methods that drop entries at random: on average `1 - density` of them, and of their squares (of
DELLA's squares less, as it keeps large ones more often)."""


@dataclass(frozen=True)
class RemovedByTrimming:
    """Sums over the entries of one task vector; those of several tensors add up.

    Attributes:
        entries: number of entries of the task vector.
        removed: number of those that trimming set to zero.
        squares: squared norm of the task vector.
        removed_squares: part of it that the removed entries had.
    """

    entries: int = 0
    removed: int = 0
    squares: float = 0.0
    removed_squares: float = 0.0

    def __add__(self, other: RemovedByTrimming) -> RemovedByTrimming:
        return RemovedByTrimming(
            self.entries + other.entries,
            self.removed + other.removed,
            self.squares + other.squares,
            self.removed_squares + other.removed_squares,
        )


def trimmed_by(
    plan: MergePlan, task: TensorTask, models: Models, workers: WorkerThreads
) -> dict[str, RemovedByTrimming]:
    """What trimming removed from one tensor of each tuned model, by the model's name.

    Args:
        plan: plan of the merge, with thresholds where its method needs them.
        task: one tensor of the plan.
        models: models that the tensor is read from.
        workers: threads to compute with.

    Returns:
        Nothing for methods that do not trim by magnitude, and for tensors that numpy cannot hold.
    """
    if plan.method.name not in BY_MAGNITUDE or task.base is None or task.is_copied:
        return {}
    base_array = models.array(task.base)
    removed_by_model: dict[str, RemovedByTrimming] = {}
    for index, source in enumerate(task.sources):
        array = models.array(source)
        if array is None or base_array is None or not task.size:
            continue
        job = Job(RowReader([array, base_array]), task.shape, {}, workers, {})
        low, high = _kept_magnitudes(task, index, job)
        removed_by_model[source.model] = _count_removed(job, low, high)
    return removed_by_model


def _kept_magnitudes(task: TensorTask, index: int, job: Job) -> tuple[float, float]:
    """The magnitudes between which entries are kept, both ends included."""
    density, size = float(task.parameters["density"][index]), task.size
    # Bounds are magnitudes that are kept, so infinity as the lower one keeps nothing.
    if density >= 1.0:
        return 0.0, math.inf
    # `ties_global` trims by one threshold for the whole model, found before.
    if task.thresholds is not None:
        return (task.thresholds[index] if density > 0.0 else math.inf), math.inf
    if "gamma" not in task.parameters:
        if density <= 0.0:
            return math.inf, math.inf
        # Counted as the merge itself does: one entry at least, and rounded down.
        num_kept = max(1, int(density * size))
        return kth_smallest(job, [(0, size - num_kept + 1)])[0], math.inf
    num_kept = int(density * size)
    if num_kept == 0:
        return math.inf, math.inf
    # Breadcrumbs drops the largest entries too: gamma of them, and then the smallest.
    num_below = max(0, size - num_kept - int(float(task.parameters["gamma"][index]) * size))
    # Both ranks in one pass over the entries.
    low, high = kth_smallest(job, [(0, num_below + 1), (0, num_below + num_kept)])
    return low, high


def _count_removed(job: Job, low: float, high: float) -> RemovedByTrimming:
    def act(start: int, stop: int) -> RemovedByTrimming:
        # bfloat16 inputs come as their bits where all are; differences are float32 as in a merge.
        tuned_values, base_values = (as_float32(row) for row in job.read(start, stop))
        delta = tuned_values - base_values
        delta_magnitudes = np.abs(delta)
        is_removed = (delta_magnitudes < low) | (delta_magnitudes > high)
        delta_squares = delta.astype(np.float64) ** 2
        return RemovedByTrimming(
            stop - start,
            int(np.count_nonzero(is_removed)),
            float(delta_squares.sum()),
            float(delta_squares[is_removed].sum()),
        )

    return sum(job.workers.each(job.size, act), RemovedByTrimming())
