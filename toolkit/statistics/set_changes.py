"""What changed on one set by group, and its moments: figures, errors, and what resamples need.

Legend: K changes (columns), G groups, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BOUNDED_CHANGE = (math.sqrt(0.5), -math.sqrt(0.5))
"""Changes of the two groups added to right-or-wrong items: with items that stand alone just what
Agresti and Min's half an answer more in each cell of the table gives."""

BOUNDED_LEVEL = (0.0, 0.0, 1.0, 1.0)
"""Levels of the four groups added where shares themselves are shown (Agresti & Coull 1998)."""


@dataclass(frozen=True)
class SetChanges:
    """What changed on one set, summed by group.

    Attributes:
        changes: sums of loss differences in the unit of the figure, `[K, G]`.
        sizes: sums of item sizes, `[G]`, above 0.
        weight: of the set among those combined, above 0.
        added_groups: rates of groups that are taken as seen in addition, each of mean size; for
            losses that are bounded (0 to 1): `BOUNDED_CHANGE` or `BOUNDED_LEVEL`.
        answer_counts: of right-or-wrong items that stand alone under each change: how many became
            wrong and how many right.
    """

    changes: Floats
    sizes: Floats
    weight: float = 1.0
    added_groups: tuple[float, ...] = ()
    answer_counts: tuple[tuple[int, int], ...] = ()

    @property
    def num_groups(self) -> int:
        return len(self.sizes)


def count_answers(changes: ArrayLike) -> tuple[int, int]:
    """How many right-or-wrong items became wrong, and how many right.

    >>> count_answers([1.0, 0.0, -1.0, 1.0])
    (2, 1)
    """
    values = np.asarray(changes, dtype=np.float64)
    return int((values > 0.5).sum()), int((values < -0.5).sum())


@dataclass(frozen=True)
class Moments:
    """One set, measured: figures `[K]`, their covariance `[K, K]`, and what resamples need."""

    plain: Floats
    center: Floats
    covariance: Floats
    freedom: float
    effective_freedom: float
    num_groups: int
    tops: Floats
    bottoms: Floats
    added_tops: Floats
    added_bottoms: Floats

    def resample(self, counts: Floats, a: Floats) -> tuple[Floats, Floats]:
        """Figures of a combination and their variances in every resample, `[R]` each."""
        top, bottom = a @ self.tops, self.bottoms
        columns = np.stack([top, bottom, top * top, top * bottom, bottom * bottom])
        more, size = a @ self.added_tops, self.added_bottoms
        constant = [s.sum() for s in (more, size, more * more, more * size, size * size)]
        sums = counts @ columns.T + np.array(constant)
        ratio = sums[:, 0] / sums[:, 1]
        square = sums[:, 2] - 2.0 * ratio * sums[:, 3] + ratio**2 * sums[:, 4]
        count = self.num_groups + len(size)
        return ratio, count / (count - 1) * square / sums[:, 1] ** 2


def measure_set(part: SetChanges) -> Moments:
    tops, bottoms = np.atleast_2d(part.changes), part.sizes
    added_bottoms = np.full(len(part.added_groups), float(bottoms.mean()))
    added_tops = np.tile(np.array(part.added_groups) * added_bottoms, (len(tops), 1))
    top, bottom = np.hstack([tops, added_tops]), np.concatenate([bottoms, added_bottoms])
    total, count = float(bottom.sum()), len(bottom)
    center = top.sum(axis=1) / total
    covariance = np.full((len(top), len(top)), math.inf)
    if part.num_groups > 1:
        # Jackknife: how the ratio moves as each group is left out.
        moved = (top - center[:, None] * bottom) / (total - bottom)
        moved -= moved.mean(axis=1, keepdims=True)
        few = part.num_groups / (part.num_groups - 1)
        covariance = few * (count - 1) / count * (moved @ moved.T)
    return Moments(
        tops.sum(axis=1) / float(bottoms.sum()),
        center,
        covariance,
        _freedom(bottoms),
        max(float(bottoms.sum() ** 2 / (bottoms**2).sum()) - 1.0, 1.0),  # Kish's effective number
        part.num_groups,
        tops,
        bottoms,
        added_tops,
        added_bottoms,
    )


def _freedom(sizes: Floats) -> float:
    """Degrees of freedom that groups leave whose weights in the figure go with their sizes: G - 1
    where they are alike, 1 at least.

    >>> float(_freedom(np.ones(8))), round(float(_freedom(np.array([8.0, 1.0, 1.0, 1.0]))), 2)
    (7.0, 1.0)
    """
    squares = sizes**2
    effective = float(squares.sum() ** 2 / (squares**2).sum())
    return max(effective * (len(sizes) - 1) / len(sizes), 1.0)
