"""Sums over the entries of one tensor, in blocks: what every figure of a diagnosis is made of.

Squared distances between all models say all about norms, angles and places; legend: V models (the
merge, its parents, the base).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.merge.kernels import compiled
from toolkit.merge.kernels.rows import RowReader, Rows, as_float32
from toolkit.merge.kernels.workers import WorkerThreads

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Sums:
    """Sums over entries; those of several tensors add up.

    Attributes:
        entries: number of entries that were summed over.
        squares: squared norm of each model, `[V]`.
        gaps: squared distance between every two models, `[V, V]`.
        both: entries in which both differ from the base, for every two models, `[V, V]`.
        same: those of them in which both differ from it in the same direction, `[V, V]`.
        non_finite: entries of each model that are NaN or infinite, `[V]`.
    """

    entries: int
    squares: Floats
    gaps: Floats
    both: Counts
    same: Counts
    non_finite: Counts

    @staticmethod
    def zero(num_models: int) -> Sums:
        pair_shape = (num_models, num_models)
        return Sums(
            0,
            np.zeros(num_models),
            np.zeros(pair_shape),
            np.zeros(pair_shape, np.int64),
            np.zeros(pair_shape, np.int64),
            np.zeros(num_models, np.int64),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.entries + other.entries,
            self.squares + other.squares,
            self.gaps + other.gaps,
            self.both + other.both,
            self.same + other.same,
            self.non_finite + other.non_finite,
        )


def sum_tensor(arrays: Sequence[NDArray[Any]], base: int, workers: WorkerThreads) -> Sums:
    """Sums of one tensor of all models.

    Args:
        arrays: flat, of one size, as `Checkpoint.array` gives them; `[V]`.
        base: index of the base model.
        workers: threads; no result depends on their number.

    Returns:
        The sums, in float64 of float32 entries; where `non_finite` is not zero, the others say
        nothing.
    """
    read_rows = RowReader(arrays)

    def act(start: int, stop: int) -> Sums:
        sums, rows = Sums.zero(len(arrays)), read_rows(start, stop)
        try:
            compiled.compare_models(
                rows, base, sums.squares, sums.gaps, sums.both, sums.same, sums.non_finite
            )
        except compiled.KernelError as error:
            compiled.announce_fallback(str(error))
            _compare_by_numpy(rows, base, sums)
        return replace(sums, entries=stop - start)

    # Added up in the order of the blocks, whose size depends on no number of threads: floating
    # point sums depend on their order.
    total_sums = sum(workers.each(arrays[0].size, act), Sums.zero(len(arrays)))
    for half in (total_sums.gaps, total_sums.both, total_sums.same):
        half += half.T  # the kernel fills the upper half
    return total_sums


def _compare_by_numpy(rows: Rows, base: int, sums: Sums) -> None:
    """What `compare_models` adds to sums that are zero, for where it cannot be compiled."""
    # Through float32, as the kernel reads them; squares are summed in float64, where those of a
    # billion small entries do not vanish beside the sum.
    values = [as_float32(row).astype(np.float64) for row in rows]
    # NaN and infinity are counted below, and need no warning each.
    with np.errstate(invalid="ignore"):
        base_deltas = [value - values[base] for value in values]
        delta_signs = [(d > 0).astype(np.int8) - (d < 0).astype(np.int8) for d in base_deltas]
        for a, value in enumerate(values):
            sums.squares[a] = value @ value
            sums.non_finite[a] = np.count_nonzero(~np.isfinite(value))
            for b in range(a + 1, len(values)):
                gap = value - values[b]
                sums.gaps[a, b] = gap @ gap
                agreement = delta_signs[a] * delta_signs[b]  # zero where one of them is the base
                sums.both[a, b] = np.count_nonzero(agreement)
                sums.same[a, b] = np.count_nonzero(agreement > 0)


def zero_rows(
    array: NDArray[Any], shape: tuple[int, ...], workers: WorkerThreads
) -> NDArray[np.bool_]:
    """Which rows of a matrix are all zero, `[rows]`."""
    # A vector has no rows, and of an empty matrix every row would count as zero.
    if len(shape) != 2 or 0 in shape:
        return np.zeros(shape[0] if shape else 0, np.bool_)

    def act(start: int, stop: int) -> NDArray[np.bool_]:
        block = as_float32(array[start:stop]).reshape(-1, shape[1])
        empty: NDArray[np.bool_] = ~np.any(block, axis=1)
        return empty

    return np.concatenate(workers.each(array.size, act, unit=shape[1]))
