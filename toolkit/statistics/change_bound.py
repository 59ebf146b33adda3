"""A change on groups of items, and all that may be concluded of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from toolkit.statistics.interval import Interval
from toolkit.statistics.proportions import tango_p_value

Floats = NDArray[np.float64]


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
        answers: right-or-wrong items that stand alone: how many became wrong, became right, all.
    """

    estimate: float
    center: float
    error: float
    freedom: float
    widening: float
    num_groups: int
    _resample: Callable[[], Floats | None] = field(repr=False)
    answers: tuple[int, int, int] | None = None
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
        if self.answers is not None:
            worse, better, total = self.answers
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
        if self.answers is not None:
            end = self._tango_end(1.0 - confidence, sign, end)
            return max(min(end, 1.0), -1.0)
        return sign * max(sign * end, sign * self.estimate)

    def _tango_end(self, tail: float, sign: float, end: float) -> float:
        """The farther of an end and that of the score test."""
        assert self.answers is not None  # noqa: S101  (asked for only where it is there)
        worse, better, total = self.answers
        pair = (worse, better) if sign > 0.0 else (better, worse)
        own = find_last_kept(
            lambda limit: tango_p_value(*pair, total, sign * limit) > tail, self.estimate, sign, 1.0
        )
        return sign * max(sign * end, sign * own)

    def _deviations(self) -> Floats | None:
        if not self._known:
            self._known.append(self._resample())
        return self._known[0]


def find_last_kept(
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
    while abs(outside - inside) > 1e-9 * max(abs(outside), 1e-3):
        middle = (inside + outside) / 2.0
        inside, outside = (middle, outside) if is_kept(middle) else (inside, middle)
    return inside
