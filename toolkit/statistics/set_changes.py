"""What changed on one set by group, and its moments: figures, errors and skewness.

Legend: K changes (columns), G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_HIDDEN = 0.75
"""Standard errors of the skewness of normal groups that may be there and not be seen: with twice
what is seen (`ChangeBound`) it keeps one-sided bounds of 5 % at 4 to 6.5 % for losses as skewed as
exponential ones, from 8 groups on. More would cost what is normal its power (dev/LOG.md)."""

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
        weight: of the set among those combined, above 0; of any sign where it is a factor.
        added_groups: rates of groups that are taken as seen in addition, each of mean size; for
            losses that are bounded (0 to 1): `BOUNDED_CHANGE` or `BOUNDED_LEVEL`.
        answer_counts: of right-or-wrong items that stand alone under each change: how many became
            wrong and how many right.
        limits: what a figure's change, or its level, cannot lie beyond.
    """

    changes: Floats
    sizes: Floats
    weight: float = 1.0
    added_groups: tuple[float, ...] = ()
    answer_counts: tuple[tuple[int, int], ...] = ()
    limits: tuple[float, float] = (-math.inf, math.inf)

    @property
    def num_groups(self) -> int:
        return len(self.sizes)


def count_answers(changes: ArrayLike) -> tuple[int, int]:
    """How many right-or-wrong items became wrong, and how many right.

    >>> count_answers([1.0, 0.0, -1.0, 1.0])
    (2, 1)
    """
    change_values = np.asarray(changes, dtype=np.float64)
    return int((change_values > 0.5).sum()), int((change_values < -0.5).sum())


@dataclass(frozen=True)
class Moments:
    """One set, measured.

    Attributes:
        plain: figures as they are, `[K]`.
        center: the same with the groups that are taken as seen, `[K]`.
        covariance: of the figures, `[K, K]`.
        freedom: degrees of freedom.
        num_groups: G.
        moved: how each figure moves as each group is left out, `[K, G + added]`.
        unseen_skewness: of a figure, what the groups may hide.
    """

    plain: Floats
    center: Floats
    covariance: Floats
    freedom: float
    num_groups: int
    moved: Floats
    unseen_skewness: float

    def third_cumulant(self, a: Floats) -> float:
        """Of a combination of the figures, corrected for the number of groups."""
        if self.num_groups < 3:
            return 0.0
        group_count = self.num_groups
        # As for the skewness of a sample (G1), which is too small on average where groups are few.
        correction = math.sqrt(group_count * (group_count - 1)) / (group_count - 2)
        return correction * float(((a @ self.moved) ** 3).sum())


def measure_set(part: SetChanges) -> Moments:
    group_changes, bottoms = np.atleast_2d(part.changes), part.sizes
    added_bottoms = np.full(len(part.added_groups), float(bottoms.mean()))
    added_tops = np.tile(np.array(part.added_groups) * added_bottoms, (len(group_changes), 1))
    top, bottom = np.hstack([group_changes, added_tops]), np.concatenate([bottoms, added_bottoms])
    size_sum, num_all = float(bottom.sum()), len(bottom)
    center = top.sum(axis=1) / size_sum
    # A single group does not say how far groups scatter.
    covariance = np.full((len(top), len(top)), math.inf)
    moved_figures = np.zeros_like(top)
    if part.num_groups > 1:
        # Jackknife: how the ratio moves as each group is left out.
        moved_figures = (top - center[:, None] * bottom) / (size_sum - bottom)
        moved_figures -= moved_figures.mean(axis=1, keepdims=True)
        # The jackknife's factor counts the added groups too, as they are left out in turn like the
        # others; the correction for few groups counts real ones alone.
        small_sample = part.num_groups / (part.num_groups - 1)
        covariance = small_sample * (num_all - 1) / num_all * (moved_figures @ moved_figures.T)
    return Moments(
        group_changes.sum(axis=1) / float(bottoms.sum()),
        center,
        covariance,
        _freedom(bottoms),
        part.num_groups,
        moved_figures,
        hidden_skewness(bottoms),
    )


def hidden_skewness(sizes: Floats) -> float:
    """What groups of these sizes may hide of the skewness of a figure.

    Reference:
        Joanes & Gill 1998, Comparing measures of sample skewness and kurtosis (standard error);
        Kish 1965, Survey sampling (effective numbers).
    """
    count = len(sizes)
    if count < 3:
        return 0.0
    error = math.sqrt(6.0 * count * (count - 1) / ((count - 2) * (count + 1) * (count + 3)))
    effective_groups = float(sizes.sum() ** 2 / (sizes**2).sum())
    return _HIDDEN * error / math.sqrt(effective_groups)


def _freedom(sizes: Floats) -> float:
    """Degrees of freedom that groups leave whose weights in the figure go with their sizes: G - 1
    where they are alike, 1 at least.

    >>> float(_freedom(np.ones(8))), round(float(_freedom(np.array([8.0, 1.0, 1.0, 1.0]))), 2)
    (7.0, 1.0)
    """
    # A group's variance in the figure goes with its size squared, so that squares are what the
    # effective number is found from.
    squared_sizes = sizes**2
    effective_groups = float(squared_sizes.sum() ** 2 / (squared_sizes**2).sum())
    return max(effective_groups * (len(sizes) - 1) / len(sizes), 1.0)
