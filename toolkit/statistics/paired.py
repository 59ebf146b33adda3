"""The one bound: how far a difference between models on the same items may lie from its estimate.

Whatever is decided (does a merge gain, does it stay within a tolerance) and whatever is shown
(a change, its interval, a share of a gain) comes from here, so that both say the same.

A figure is Σ losses / Σ sizes over groups of items; several sets may be weighted together. Items of
one group are alike, so groups are the sample. Four things make the plain interval too narrow, and
each has its answer:

- Few groups of unequal sizes: the error is the jackknife's, times √(G / (G - 1)), and the degrees
  of freedom of Student's t are those that the sizes leave (Satterthwaite; one large filing among
  small ones is hardly more than one).
- Losses with a long tail, and sizes that go along with losses: each end is the farther of
  Student's t and the studentized bootstrap.
- Right-or-wrong items, of which few change: their scatter is not known from themselves. Two
  further groups, one worse and one better, are taken as seen (Agresti & Min), and where items stand
  alone Tango's score test must agree.
- Fewer than five groups: no bootstrap, Student's t alone, wide as it is. One group says nothing.

Legend: K changes (columns), G groups, R resamples.

Reference:
    Cochran 1977, Sampling techniques, chapters 6 and 9 (ratios, clusters); Efron & Tibshirani 1993,
    An introduction to the bootstrap, section 12.5 (studentized); Bell & McCaffrey 2002, Bias
    reduction in standard errors for linear regression with multi-stage samples (degrees of
    freedom); Satterthwaite 1946; Fieller 1954, Some problems in interval estimation (ratios);
    Kish 1965, Survey sampling (effective numbers); Agresti & Min 2005; Tango 1998.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from toolkit.statistics.interval import Interval
from toolkit.statistics.proportions import tango_p_value

Floats = NDArray[np.float64]

NUM_RESAMPLES = 3999
"""One more is a round number, so that 5 % and 0.1 % are whole numbers of resamples."""

MIN_GROUPS_TO_RESAMPLE = 5
"""Of fewer groups too many resamples are one group over and over, without any scatter."""

BOUNDED_CHANGE = (math.sqrt(0.5), -math.sqrt(0.5))
"""Changes of the two groups added to right-or-wrong items: with items that stand alone just what
Agresti and Min's half an answer more in each cell of the table gives."""

BOUNDED_LEVEL = (0.0, 0.0, 1.0, 1.0)
"""Levels of the four groups added where shares themselves are shown (Agresti & Coull 1998)."""

_FAR = 1e6
"""Stands for a studentized deviation without end: a resample without any scatter."""


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
class PairedChanges:
    """K changes on the same groups of one or several sets, and combinations of them.

    Attributes:
        sets: on which they were measured; weights are divided by their sum.
        num_resamples: R.
    """

    sets: Sequence[SetChanges]
    num_resamples: int = NUM_RESAMPLES
    _weights: Floats = field(init=False, repr=False)
    _moments: list[_Moments] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        weights = np.array([part.weight for part in self.sets], dtype=np.float64)
        object.__setattr__(self, "_weights", weights / weights.sum())
        object.__setattr__(self, "_moments", [_measure(part) for part in self.sets])

    @property
    def num_groups(self) -> int:
        """Of the set with the fewest."""
        return min(part.num_groups for part in self.sets)

    def combination(self, factors: Sequence[float]) -> ChangeBound:
        """The sum of the changes times these factors, `[K]`."""
        a = np.asarray(factors, dtype=np.float64)
        w = self._weights
        estimate = float(w @ [m.plain @ a for m in self._moments])
        center = float(w @ [m.center @ a for m in self._moments])
        variances = w**2 * [max(float(a @ m.covariance @ a), 0.0) for m in self._moments]
        variance = float(variances.sum())
        freedom = _satterthwaite(variances, [m.freedom for m in self._moments])
        effective = _satterthwaite(variances, [m.effective_freedom for m in self._moments])
        nominal = _satterthwaite(variances, [max(m.num_groups - 1, 1) for m in self._moments])
        return ChangeBound(
            estimate,
            center,
            math.sqrt(variance),
            freedom,
            float(stdtrit(effective, 0.95) / stdtrit(nominal, 0.95)),
            self.num_groups,
            lambda: self._deviations(a, center, math.sqrt(variance)),
            self._answers(a),
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
        below = self.change(whole).interval(confidence)
        if below.low <= 0.0 <= below.high:
            return None
        sign = 1.0 if below.estimate > 0.0 else -1.0
        factors = np.zeros(len(self.sets[0].changes))

        def contrast(share: float) -> ChangeBound:
            factors[:] = 0.0
            factors[part] += sign
            factors[whole] -= sign * share
            return self.combination(factors.tolist())

        tail = (1.0 - confidence) / 2.0
        estimate = self.change(part).estimate / self.change(whole).estimate
        high = _last_kept(lambda share: contrast(share).p_value_below(0.0) > tail, estimate, 1.0)
        low = _last_kept(lambda share: contrast(share).p_value_above(0.0) > tail, estimate, -1.0)
        return Interval(estimate, low, high)

    def _answers(self, a: Floats) -> tuple[int, int, int] | None:
        """Items that became wrong, that became right, and all: of one set and one change alone."""
        used = np.flatnonzero(a)
        if len(self.sets) > 1 or len(used) != 1 or abs(a[used[0]]) != 1.0:
            return None
        only = self.sets[0]
        if not only.answer_counts:
            return None
        worse, better = only.answer_counts[used[0]]
        counts = (worse, better) if a[used[0]] > 0.0 else (better, worse)
        return (*counts, only.num_groups)

    def _deviations(self, a: Floats, center: float, error: float) -> Floats | None:
        """Sorted studentized deviations of the resamples, `[R]`; None with too few groups."""
        few = self.num_groups < MIN_GROUPS_TO_RESAMPLE
        if few or error == 0.0 or self._answers(a) is not None:  # answers have a test of their own
            return None
        moved = np.zeros(self.num_resamples)
        variance = np.zeros(self.num_resamples)
        for place, (w, moments) in enumerate(zip(self._weights, self._moments, strict=True)):
            counts = _resample_counts(moments.num_groups, self.num_resamples, place)
            draws, squares = moments.resample(counts, a)
            moved += w * draws
            variance += w**2 * squares
        moved -= center
        own = np.sqrt(np.maximum(variance, 0.0))
        varies = own > 1e-9 * error
        still = np.abs(moved) <= 1e-9 * error
        far = np.where(still, 0.0, np.sign(moved) * _FAR)
        return np.sort(np.where(varies, moved / np.where(varies, own, 1.0), far))


@dataclass(frozen=True)
class ChangeBound:
    """A change with all that may be concluded of it; negative is a gain, as losses go down.

    Attributes:
        estimate: in the unit of the figure.
        center: what bounds are laid around: the estimate, but for right-or-wrong items.
        error: standard error.
        freedom: degrees of freedom that groups of such sizes leave.
        widening: of the bootstrap's ends, for what unequal sizes take from the number of groups.
        num_groups: of the set with the fewest.
    """

    estimate: float
    center: float
    error: float
    freedom: float
    widening: float
    num_groups: int
    _resample: Callable[[], Floats | None] = field(repr=False)
    _answers: tuple[int, int, int] | None = field(default=None, repr=False)
    _known: list[Floats | None] = field(default_factory=list, repr=False)

    def p_value_below(self, limit: float) -> float:
        """Chance of such figures, were the true change at the limit or above it.

        `p_value_below(limit) <= 1 - confidence` just where `upper_bound(confidence) <= limit`.
        """
        return self._p_value(limit, 1.0)

    def p_value_above(self, limit: float) -> float:
        """Chance of such figures, were the true change at the limit or below it."""
        return self._p_value(limit, -1.0)

    def upper_bound(self, confidence: float) -> float:
        """The true change lies below with this confidence."""
        return self._end(confidence, 1.0)

    def lower_bound(self, confidence: float) -> float:
        """The true change lies above with this confidence."""
        return self._end(confidence, -1.0)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Both ends, each with half of what is left."""
        side = 0.5 + confidence / 2.0
        return Interval(self.estimate, self.lower_bound(side), self.upper_bound(side))

    def _p_value(self, limit: float, sign: float) -> float:
        if self.num_groups < 2:
            return 1.0
        if self.error == 0.0:
            return 0.0 if sign * self.estimate < sign * limit else 1.0
        statistic = sign * (self.center - limit) / self.error
        chance = float(stdtr(self.freedom, statistic))
        deviations = self._deviations()
        if deviations is not None:
            reached = statistic / self.widening
            below = np.searchsorted(deviations, reached, side="right")
            above = len(deviations) - np.searchsorted(deviations, -reached, side="left")
            beyond = float(below if sign > 0.0 else above)
            chance = max(chance, (1.0 + beyond) / (1.0 + len(deviations)))
        if self._answers is not None:
            worse, better, total = self._answers
            pair = (worse, better) if sign > 0.0 else (better, worse)
            chance = max(chance, tango_p_value(*pair, total, sign * limit))
        return chance

    def _end(self, confidence: float, sign: float) -> float:
        if self.num_groups < 2:
            return sign * math.inf
        if self.error == 0.0:
            return self.estimate
        reach = float(stdtrit(self.freedom, confidence))
        deviations = self._deviations()
        if deviations is not None:
            # As many resamples as may lie beyond for the p-value to stay at 1 - confidence.
            place = math.floor((1.0 - confidence) * (1.0 + len(deviations)) + 1e-9) - 1
            if place < 0:
                return sign * math.inf
            farthest = deviations[place] if sign > 0.0 else deviations[-1 - place]
            reach = max(reach, -sign * float(farthest) * self.widening)
        end = self.center + sign * reach * self.error
        if self._answers is not None:
            end = self._tango_end(1.0 - confidence, sign, end)
            return max(min(end, 1.0), -1.0)
        return sign * max(sign * end, sign * self.estimate)

    def _tango_end(self, tail: float, sign: float, end: float) -> float:
        """The farther of an end and that of the score test."""
        assert self._answers is not None  # noqa: S101  (asked for only where it is there)
        worse, better, total = self._answers
        pair = (worse, better) if sign > 0.0 else (better, worse)
        own = _last_kept(
            lambda limit: tango_p_value(*pair, total, sign * limit) > tail, self.estimate, sign, 1.0
        )
        return sign * max(sign * end, sign * own)

    def _deviations(self) -> Floats | None:
        if not self._known:
            self._known.append(self._resample())
        return self._known[0]


@dataclass(frozen=True)
class _Moments:
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


def _measure(part: SetChanges) -> _Moments:
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
    return _Moments(
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


def _satterthwaite(variances: Floats, freedoms: Sequence[float]) -> float:
    total = float(variances.sum())
    if not 0.0 < total < math.inf:
        return min(freedoms)
    return total**2 / float((variances**2 / np.asarray(freedoms)).sum())


@lru_cache(maxsize=16)
def _resample_counts(num_groups: int, num_resamples: int, place: int) -> Floats:
    """How often each group is drawn, `[R, G]`: the same for every candidate, so that what is
    concluded of one does not depend on which others were tried."""
    generator = np.random.default_rng([num_groups, place])
    chances = np.full(num_groups, 1.0 / num_groups)
    return generator.multinomial(num_groups, chances, size=num_resamples).astype(np.float64)


def _last_kept(
    is_kept: Callable[[float], bool], start: float, sign: float, limit: float = 1e6
) -> float:
    """The last value in one direction that is not refuted, by doubling and halving."""
    inside, step = start, 1e-3
    while True:
        outside = sign * min(sign * start + step, limit)
        if not is_kept(outside):
            break
        if outside == sign * limit:
            return outside if limit == 1.0 else sign * math.inf
        inside, step = outside, 2.0 * step
    for _ in range(60):
        middle = (inside + outside) / 2.0
        if middle in (inside, outside):
            break
        inside, outside = (middle, outside) if is_kept(middle) else (inside, middle)
    return inside
