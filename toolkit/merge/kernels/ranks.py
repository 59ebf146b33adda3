"""Magnitudes of a task vector by rank, exactly and without sorting.

A sample says within which window of magnitudes a rank must lie; one pass counts what is smaller
and collects what is within, a few entries in a hundred. Should the rank lie elsewhere, or too many
be within, two passes find it for certain: by the upper halves of all patterns, then by the lower
halves of those that share the upper one. So memory does not grow with the tensor.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.merge.kernels import compiled, workers
from toolkit.merge.kernels.job import Job
from toolkit.merge.kernels.rows import Rows, as_float32
from toolkit.merge.kernels.sizes import HALVES

Wanted = tuple[int, int]
"""A model, and a rank from 1."""

SMALL = 1 << 16
"""Tensors up to this size are partitioned whole."""

_RUN, _LEAST_RUNS, _MOST_RUNS = 128, 256, 1024
"""Of the sample: runs are short, as neighbors are alike; one for 4096 entries of the tensor, but
no fewer and no more than these."""

_DEVIATIONS = 6.0
"""Half a window, in standard deviations of an independent sample: as entries of a run are not
quite independent, this sample may deviate half as far again."""

_MOST_HELD = 1 << 23
"""Most magnitudes that are held of a window."""

_SLACK = 64
"""Room beyond the last entry that kernels may write over."""

_SHARE_OF_DISTINCT = 8
"""A table is kept only where it has no more values than the tensor has entries, divided by this."""


@dataclass(frozen=True)
class _Window:
    """Where a rank is expected: from the magnitude with bits `least` on, `width` patterns."""

    wanted: Wanted
    least: int
    width: int


def kth_smallest(job: Job, wanted: Sequence[Wanted]) -> list[float]:
    """Magnitudes of the models' task vectors at given ranks.

    What is learned stays in the job's memory: the second call with new ranks of a model makes a
    table that answers all later ones.
    """
    memory = job.memory
    unknown = [item for item in dict.fromkeys(wanted) if ("rank", item) not in memory]
    new = [item for item in unknown if ("met", item[0]) not in memory]
    found = {item: _again(job, *item) for item in unknown if item not in new}
    found |= _partitioned(job, new) if job.size <= SMALL else _within_windows(job, new)
    for item in unknown:
        # What neither a window nor a table answered is counted for certain.
        memory["rank", item] = found[item] if item in found else _by_halves(job, *item)
        memory["met", item[0]] = True
    return [float(memory["rank", item]) for item in wanted]


def _partitioned(job: Job, wanted: Sequence[Wanted]) -> dict[Wanted, float]:
    rows = [as_float32(row) for row in job.read(0, job.size)]
    return {
        (model, k): float(np.partition(np.abs(rows[model] - rows[-1]), k - 1)[k - 1])
        for model, k in wanted
    }


@dataclass(frozen=True)
class _Collected:
    """What one thread has found in a tensor's windows; see `collect_windows`."""

    widths: NDArray[np.uint32]
    below: NDArray[np.int64]
    used: NDArray[np.int64]
    room: NDArray[np.uint32]


_here = threading.local()


def _room(num_windows: int) -> NDArray[np.uint32]:
    """Of this thread, for one tensor after the other; what is never used takes no memory."""
    size = _MOST_HELD + workers.BLOCK + _SLACK
    room: NDArray[np.uint32] | None = getattr(_here, "room", None)
    if room is None or room.shape[0] < num_windows or room.shape[1] < size:
        room = _here.room = np.empty((num_windows, size), np.uint32)
    return room


def _within_windows(job: Job, wanted: Sequence[Wanted]) -> dict[Wanted, float]:
    windows = _windows(job, wanted)
    if not windows:
        return {}
    models = np.array([window.wanted[0] for window in windows], np.int64)
    least = np.array([window.least for window in windows], np.uint32)
    widths = np.array([window.width for window in windows], np.uint32)
    collected: dict[int, _Collected] = {}

    def add(start: int, stop: int) -> None:
        thread, num = threading.get_ident(), len(windows)
        if thread not in collected:
            below, used = np.zeros((2, num), np.int64)
            collected[thread] = _Collected(widths.copy(), below, used, _room(num))
        own = collected[thread]
        rows = job.read(start, stop)
        compiled.collect_windows(rows, models, least, own.widths, own.below, own.used, own.room)
        own.widths[own.used > _MOST_HELD] = 0  # no more of these

    job.workers.each(job.size, add)
    threads = list(collected.values())
    found = {}
    for w, window in enumerate(windows):
        rest = window.wanted[1] - sum(int(own.below[w]) for own in threads)
        parts = [own.room[w, : own.used[w] + _SLACK] for own in threads]
        held = sum(int(own.used[w]) for own in threads)
        # Not where a thread stopped collecting, or the rank lies beside the window.
        if all(own.widths[w] > 0 for own in threads) and 1 <= rest <= held:
            found[window.wanted] = magnitude(_kth(parts, rest, window))
    return found


def _kth(parts: Sequence[NDArray[np.uint32]], k: int, window: _Window) -> int:
    """The `k`-th smallest word, from 1, of several arrays of words within a window, each array with
    room behind them."""
    words = parts[0]
    if len(parts) > 1:
        # Any words do for the room at the end, which `kth_word` writes over.
        words = np.concatenate([*(part[:-_SLACK] for part in parts), words[:_SLACK]])
    return compiled.kth_word(words, words.size - _SLACK, k, window.least, window.width)


def _windows(job: Job, wanted: Sequence[Wanted]) -> list[_Window]:
    if not wanted or job.size >= 1 << 32:  # windows are counted in 32 bits
        return []
    sample = job.read.sample(min(max(job.size >> 12, _LEAST_RUNS), _MOST_RUNS), _RUN)
    windows = []
    for model in dict.fromkeys(m for m, _ in wanted):
        counts = np.zeros(HALVES, np.int64)
        compiled.upper_histogram(sample, model, counts)
        cumulative = np.cumsum(counts)
        for _, rank in (item for item in wanted if item[0] == model):
            windows.append(_window((model, rank), rank / job.size, cumulative))
    return windows


def _window(wanted: Wanted, share: float, cumulative: NDArray[np.int64]) -> _Window:
    size = int(cumulative[-1])
    middle, slack = share * size, _DEVIATIONS * math.sqrt(share * (1.0 - share) * size) + 1.0
    first = int(np.searchsorted(cumulative, middle - slack)) if middle > slack else 0
    reaches = middle + slack < size
    # The upper half of the patterns would be negative numbers, and magnitudes are none.
    last = int(np.searchsorted(cumulative, middle + slack)) if reaches else HALVES // 2 - 1
    return _Window(wanted, first << 16, (last + 1 - first) << 16)


def _again(job: Job, model: int, k: int) -> float:
    memory = job.memory
    if ("table", model) not in memory:
        memory["table", model] = _table(job, model)
    if memory["table", model] is None:
        return _by_halves(job, model, k)
    patterns, cumulative = memory["table", model]
    return magnitude(int(patterns[np.searchsorted(cumulative, k)]))


def _by_halves(job: Job, model: int, k: int) -> float:
    upper, rest = place_of(_cumulative(job, model), k)
    lower, _ = place_of(np.cumsum(lower_counts(job, model, upper)), rest)
    return magnitude(upper << 16 | lower)


def _cumulative(job: Job, model: int) -> NDArray[np.int64]:
    if ("upper", model) not in job.memory:
        job.memory["upper", model] = np.cumsum(upper_counts(job, model))
    known: NDArray[np.int64] = job.memory["upper", model]
    return known


def upper_counts(job: Job, model: int) -> NDArray[np.int64]:
    """Histogram of a task vector's magnitudes by their upper pattern halves, `[65536]`."""

    def add(start: int, stop: int, counts: NDArray[Any]) -> None:
        rows = job.read(start, stop)
        try:
            compiled.upper_histogram(rows, model, counts)
        except compiled.KernelError:
            counts += np.bincount(_magnitude_bits(rows, model) >> 16, minlength=HALVES)

    return job.workers.count(job.size, HALVES, add)


def lower_counts(job: Job, model: int, upper: int) -> NDArray[np.int64]:
    """Of the magnitudes with one upper half: histogram by their lower halves, `[65536]`."""

    def add(start: int, stop: int, counts: NDArray[Any]) -> None:
        rows = job.read(start, stop)
        try:
            compiled.lower_histogram(rows, model, upper, counts)
        except compiled.KernelError:
            bits = _magnitude_bits(rows, model)
            counts += np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=HALVES)

    return job.workers.count(job.size, HALVES, add)


def _magnitude_bits(rows: Rows, model: int) -> NDArray[np.int64]:
    """What the histograms count, for where they cannot be compiled."""
    deltas = as_float32(rows[model]) - as_float32(rows[-1])
    return deltas.view(np.int32).astype(np.int64) & 0x7FFFFFFF


def place_of(cumulative: NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bin that rank `k`, from 1, is in, and its rank there."""
    index = int(np.searchsorted(cumulative, k))
    return index, k - (int(cumulative[index - 1]) if index else 0)


def magnitude(bits: int) -> float:
    """The float32 of these bits."""
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _table(job: Job, model: int) -> tuple[Any, Any] | None:
    """Distinct magnitudes and how many are not larger, or None where they are too many."""
    limit = job.size // _SHARE_OF_DISTINCT + 256
    # The table counts in 32 bits.
    if job.size >= 1 << 32:
        return None
    ends = _cumulative(job, model)
    halves = np.empty(job.size, np.uint16)
    starts = np.concatenate([[0], ends[:-1]])
    compiled.scatter_halves(job.read(0, job.size), model, starts, halves)
    patterns, cumulative = np.empty(limit, np.uint32), np.empty(limit, np.uint32)
    scratch = np.zeros(HALVES, np.uint32), np.zeros(HALVES // 64, np.uint64)
    found = compiled.distinct(halves, ends, *scratch, patterns, cumulative)
    return None if found > limit else (patterns[:found].copy(), cumulative[:found].copy())
