"""Magnitudes by rank, exactly and without sorting: a histogram of upper pattern halves says which
bin a rank is in, the lower halves of that bin's entries say which value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.merge.kernels import table, trimmed
from toolkit.merge.kernels.job import Job

_SHARE_OF_DISTINCT = 8
"""A table is kept only where it has no more values than the tensor has entries, divided by this."""


def kth_smallest(job: Job, model: int, ranks: Sequence[int]) -> list[float]:
    """Magnitudes of a task vector at ranks counted from 1.

    What is learnt stays in the job's memory: the first call counts upper halves, and each rank
    takes one more pass; the second call with new ranks makes a table that answers all later ones.
    """
    memory = job.memory
    if any(("rank", model, k) not in memory for k in ranks):
        if ("coarse", model) in memory and ("table", model) not in memory:
            memory["table", model] = _table(job, model, memory["coarse", model])
        for k in ranks:
            memory["rank", model, k] = _find(job, model, k)
    return [float(memory["rank", model, k]) for k in ranks]


def _find(job: Job, model: int, k: int) -> float:
    memory = job.memory
    if memory.get(("table", model)) is not None:
        patterns, cumulative = memory["table", model]
        return float(patterns[np.searchsorted(cumulative, k)].view(np.float32))
    if ("coarse", model) not in memory:
        memory["coarse", model] = np.cumsum(upper_counts(job, model))
    upper, rest = place_of(memory["coarse", model], k)
    lower, _ = place_of(np.cumsum(lower_counts(job, model, upper)), rest)
    return magnitude(upper, lower)


def upper_counts(job: Job, model: int) -> NDArray[np.int64]:
    """Histogram of a task vector's magnitudes by their upper pattern halves, `[65536]`."""

    def add(start: int, stop: int, counts: NDArray[np.int64]) -> None:
        trimmed.coarse_histogram(job.read(start, stop), model, counts)

    return job.workers.count(job.size, trimmed.BINS, add)


def lower_counts(job: Job, model: int, upper: int) -> NDArray[np.int64]:
    """Of the magnitudes with one upper half: histogram by their lower halves, `[65536]`."""

    def add(start: int, stop: int, counts: NDArray[np.int64]) -> None:
        trimmed.fine_histogram(job.read(start, stop), model, upper, counts)

    return job.workers.count(job.size, trimmed.BINS, add)


def place_of(cumulative: NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bin that rank `k`, from 1, is in, and its rank there."""
    index = int(np.searchsorted(cumulative, k))
    return index, k - (int(cumulative[index - 1]) if index else 0)


def magnitude(upper: int, lower: int) -> float:
    """The float32 of these pattern halves."""
    return float(np.array([(upper << 16) | lower], np.uint32).view(np.float32)[0])


def _table(job: Job, model: int, ends: NDArray[np.int64]) -> tuple[Any, Any] | None:
    """Distinct magnitudes and how many are not larger, or None where they are too many."""
    limit = job.size // _SHARE_OF_DISTINCT + 256
    if job.size >= 1 << 32:
        return None
    halves = np.empty(job.size, np.uint16)
    starts = np.concatenate([[0], ends[:-1]])
    table.scatter_halves(job.read(0, job.size), model, starts, halves)
    patterns, cumulative = np.empty(limit, np.uint32), np.empty(limit, np.uint32)
    found = int(table.distinct(halves, ends, patterns, cumulative))
    return None if found < 0 else (patterns[:found].copy(), cumulative[:found].copy())
