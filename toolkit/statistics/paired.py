"""The one bound: how far a difference between models on the same items may lie from its estimate.

Whatever is decided (does a merge gain, does it stay within a tolerance) and whatever is shown
(a change, its interval, a share of a gain) comes from here, so that both say the same.

A figure is Σ losses / Σ sizes over groups of items; several sets may be weighted together. Items of
one group are alike, so groups are the sample. Four things make the plain interval too narrow, and
each has its answer:

- Few groups of unequal sizes: the error is the jackknife's, times √(G / (G - 1)), and the degrees
  of freedom of Student's t are those that the sizes leave (Satterthwaite; one large filing among
  small ones is hardly more than one).
- Losses with a long tail, and sizes that go along with losses: the skewness of the estimate moves
  each end outwards, taken as larger than it was found where groups are few (`ChangeBound`).
- Right-or-wrong items, of which few change: their scatter is not known from themselves. Two
  further groups, one worse and one better, are taken as seen (Agresti & Min), and where items stand
  alone Tango's score test must agree.
- Few groups: the same formulas, which then give wide ends. One group says nothing.

Legend: K changes (columns), G groups.

Reference:
    Cochran 1977, Sampling techniques, chapters 6 and 9 (ratios, clusters); Hall 1992, The bootstrap
    and Edgeworth expansion (skewness); Bell & McCaffrey 2002, Bias
    reduction in standard errors for linear regression with multi-stage samples (degrees of
    freedom); Satterthwaite 1946; Fieller 1954, Some problems in interval estimation (ratios);
    Kish 1965, Survey sampling (effective numbers); Agresti & Min 2005; Tango 1998.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.statistics.change_bound import ChangeBound
from toolkit.statistics.interval import Interval, find_last_kept
from toolkit.statistics.set_changes import (
    Moments,
    SetChanges,
    hidden_skewness,
    measure_set,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairedChanges:
    """K changes on the same groups of one or several sets, and combinations of them.

    Attributes:
        sets: on which they were measured; weights are divided by their sum.
        are_factors: whether weights are taken as they are instead, of any sign: what is asked for
            is then not a mean of sets but a sum.
    """

    sets: Sequence[SetChanges]
    are_factors: bool = False
    _weights: Floats = field(init=False, repr=False)
    _moments: list[Moments] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_weights = np.array([part.weight for part in self.sets], dtype=np.float64)
        weight_sum = 1.0 if self.are_factors else set_weights.sum()
        # Measured once, as a share of a gain asks for dozens of combinations of the same moments. A
        # frozen dataclass can be given them in no other way.
        object.__setattr__(self, "_weights", set_weights / weight_sum)
        object.__setattr__(self, "_moments", [measure_set(part) for part in self.sets])

    @property
    def num_groups(self) -> int:
        """Of the set with the fewest."""
        return min(part.num_groups for part in self.sets)

    def combination(self, factors: Sequence[float]) -> ChangeBound:
        """The sum of the changes times these factors, `[K]`."""
        a = np.asarray(factors, dtype=np.float64)
        w = self._weights
        answers = self._answers(a)
        estimate = float(w @ [m.plain @ a for m in self._moments])
        center = float(w @ [m.center @ a for m in self._moments])
        # Sets hold different items, so their variances add. Rounding may leave one that is zero
        # just below it.
        variances = w**2 * [max(float(a @ m.covariance @ a), 0.0) for m in self._moments]
        total_variance = float(variances.sum())
        freedom = _satterthwaite(variances, [m.freedom for m in self._moments])
        skewness = unseen_skewness = 0.0
        if answers is None and 0.0 < total_variance < math.inf:  # answers have a test of their own
            # Third cumulants of independent sums add as variances do; skewness itself does not.
            third_cumulants = w**3 * [m.third_cumulant(a) for m in self._moments]
            skewness = float(third_cumulants.sum()) / total_variance**1.5
            # What may be hidden is of unknown sign: it adds up whatever the signs of the weights.
            hidden_cumulants = variances**1.5 * [m.unseen_skewness for m in self._moments]
            unseen_skewness = float(hidden_cumulants.sum()) / total_variance**1.5
        return ChangeBound(
            estimate,
            center,
            math.sqrt(total_variance),
            freedom,
            self.num_groups,
            skewness,
            unseen_skewness,
            answers,
            self._limits(a),
        )

    def change(self, column: int = 0) -> ChangeBound:
        """One of the changes by itself."""
        return self.combination(np.eye(len(self.sets[0].changes))[column].tolist())

    def ratio(self, part: int, whole: int, confidence: float = 0.95) -> Interval | None:
        """One change as a share of another: all shares that the items do not refute (Fieller).

        Args:
            part: column above the line.
            whole: column below it.
            confidence: two-sided.

        Returns:
            None where the change below the line is not shown to differ from none: a share of what
            may be nothing has no meaning.
        """
        whole_interval = self.change(whole).interval(confidence)
        if whole_interval.low <= 0.0 <= whole_interval.high:
            return None
        # With the whole turned positive the contrast falls as the share rises, so that each end is
        # passed only once on the way outwards.
        whole_sign = 1.0 if whole_interval.estimate > 0.0 else -1.0
        factors = np.zeros(len(self.sets[0].changes))

        def contrast(share: float) -> ChangeBound:
            factors[:] = 0.0
            factors[part] += whole_sign
            factors[whole] -= whole_sign * share
            return self.combination(factors.tolist())

        def may_be_higher(share: float) -> bool:
            return contrast(share).upper_bound(one_sided) > 0.0

        def may_be_lower(share: float) -> bool:
            return contrast(share).lower_bound(one_sided) < 0.0

        one_sided = 0.5 + confidence / 2.0
        estimate = self.change(part).estimate / self.change(whole).estimate
        low, high = (
            find_last_kept(is_kept, estimate, direction)
            for is_kept, direction in ((may_be_lower, -1.0), (may_be_higher, 1.0))
        )
        return Interval(estimate, low, high)

    def _limits(self, a: Floats) -> tuple[float, float]:
        """What one of the changes, and a mean of it over sets, cannot lie beyond."""
        used_columns = np.flatnonzero(a)
        if self.are_factors or len(used_columns) != 1 or a[used_columns[0]] != 1.0:
            return -math.inf, math.inf
        low, high = (
            float(self._weights @ [part.limits[end] for part in self.sets]) for end in (0, 1)
        )
        return low, high

    def _answers(self, a: Floats) -> tuple[int, int, int] | None:
        """Items that became wrong, that became right, and all: of one set and one change alone."""
        used_columns = np.flatnonzero(a)
        # The score test knows one table of counts: neither weighted sets nor mixed changes have
        # one.
        if len(self.sets) > 1 or len(used_columns) != 1 or abs(a[used_columns[0]]) != 1.0:
            return None
        only_set = self.sets[0]
        if not only_set.answer_counts or self._weights[0] != 1.0:
            return None
        num_worse, better = only_set.answer_counts[used_columns[0]]
        # A change taken with a minus exchanges what became wrong and what became right.
        signed_counts = (num_worse, better) if a[used_columns[0]] > 0.0 else (better, num_worse)
        return (*signed_counts, only_set.num_groups)


def expected_change(scatter: float, num_groups: int) -> ChangeBound:
    """No change, with the error that so many groups of one size have which scatter so much.

    Args:
        scatter: standard deviation of a group's own change.
        num_groups: at least 1.
    """
    error = scatter / math.sqrt(num_groups)
    unseen = hidden_skewness(np.ones(num_groups))
    return ChangeBound(0.0, 0.0, error, max(num_groups - 1.0, 1.0), num_groups, 0.0, unseen)


def _satterthwaite(variances: Floats, freedoms: Sequence[float]) -> float:
    total_variance = float(variances.sum())
    # Nothing scatters, or some set has a single group: the weakest set speaks for all.
    if not 0.0 < total_variance < math.inf:
        return min(freedoms)
    return total_variance**2 / float((variances**2 / np.asarray(freedoms)).sum())
