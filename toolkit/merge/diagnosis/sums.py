"""Sums over the entries of one tensor, in blocks: what every figure of a diagnosis is made of.

Squared distances between all models say all about norms, angles and places; legend: V models (the
merge, its parents, the base).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.merge.compute import as_float32
from toolkit.merge.kernels.workers import Workers

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Sums:
    """Sums over entries; those of several tensors add up.

    Attributes:
        entries: how many were summed over.
        squares: squared norm of each model, `[V]`.
        gaps: squared distance between every two models, `[V, V]`.
        both: entries in which both differ from the base, for every two models, `[V, V]`.
        same: those of them in which both differ from it in the same direction, `[V, V]`.
    """

    entries: int
    squares: Floats
    gaps: Floats
    both: Counts
    same: Counts

    @staticmethod
    def zero(num_models: int) -> Sums:
        square = (num_models, num_models)
        return Sums(
            0,
            np.zeros(num_models),
            np.zeros(square),
            np.zeros(square, np.int64),
            np.zeros(square, np.int64),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.entries + other.entries,
            self.squares + other.squares,
            self.gaps + other.gaps,
            self.both + other.both,
            self.same + other.same,
        )


def sum_tensor(arrays: Sequence[NDArray[Any]], base: int, workers: Workers) -> Sums:
    """Sums of one tensor of all models.

    Args:
        arrays: flat, of one size, as `Checkpoint.array` gives them; `[V]`.
        base: index of the base model.
        workers: threads; no result depends on their number.

    Returns:
        The sums, in float64 of float32 entries.
    """

    def act(start: int, stop: int) -> Sums:
        return _sum_block([as_float32(array[start:stop]) for array in arrays], base)

    return sum(workers.each(arrays[0].size, act), Sums.zero(len(arrays)))


def _sum_block(rows: Sequence[NDArray[np.float32]], base: int) -> Sums:
    found = Sums.zero(len(rows))
    wide = [row.astype(np.float64) for row in rows]
    found.squares[:] = [row @ row for row in wide]
    for i, j in combinations(range(len(rows)), 2):
        difference = wide[i] - wide[j]
        found.gaps[i, j] = found.gaps[j, i] = difference @ difference
    del wide
    # A float32 difference is zero only of equal numbers, so its sign is exact.
    signs = [np.sign(row - rows[base]).astype(np.int8) for row in rows]
    for i, j in combinations(range(len(rows)), 2):
        product = signs[i] * signs[j]
        found.both[i, j] = found.both[j, i] = np.count_nonzero(product)
        found.same[i, j] = found.same[j, i] = np.count_nonzero(product > 0)
    return Sums(len(rows[0]), found.squares, found.gaps, found.both, found.same)


def count_non_finite(array: NDArray[Any], workers: Workers) -> int:
    """Entries that are NaN or infinite."""

    def act(start: int, stop: int) -> int:
        return (stop - start) - int(np.count_nonzero(np.isfinite(as_float32(array[start:stop]))))

    return sum(workers.each(array.size, act))


def zero_rows(array: NDArray[Any], shape: tuple[int, ...], workers: Workers) -> NDArray[np.bool_]:
    """Which rows of a matrix are all zero, `[rows]`."""
    if len(shape) != 2 or 0 in shape:
        return np.zeros(shape[0] if shape else 0, np.bool_)

    def act(start: int, stop: int) -> NDArray[np.bool_]:
        block: NDArray[np.bool_] = as_float32(array[start:stop]).reshape(-1, shape[1]).any(axis=1)
        return ~block

    return np.concatenate(workers.each(array.size, act, unit=shape[1]))
