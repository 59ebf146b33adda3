"""A change on groups of items, and all that may be concluded of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy.special import ndtr, ndtri, stdtr, stdtrit

from toolkit.statistics.interval import Interval, find_last_kept
from toolkit.statistics.proportions import tango_p_value

_MISSED = 2.0
"""A sample that misses the far tail of its losses shows about half of their skewness, and those are
the samples whose bound lies too low: what is found is taken times this."""

_WIDEST = 2.0
"""Times Student's reach at most: beyond that the expansion says nothing, and one far group among
few would hide whatever the others show. Losses as skewed as exponential ones need 1.2 to 1.8."""

_ITEM_CORRECTION = 0.25
"""Items added to the losses of right-or-wrong sets. Answers are whole numbers: of 14 to 400 items,
with limits of 0.01 to 0.1, a loss of the limit passes the score test at 5 % in up to 6.0 % of sets,
with this in at most 4.9 % (held by `tests/statistics/test_paired.py`)."""


@dataclass(frozen=True)
class ChangeBound:
    """A change with all that may be concluded of it; negative is a gain, as losses go down.

    Attributes:
        estimate: in the unit of the figure.
        center: what bounds are laid around: the estimate, but for right-or-wrong items.
        error: standard error.
        freedom: degrees of freedom that groups of such sizes leave.
        num_groups: of the set with the fewest.
        skewness: of the estimate, as the groups show it: their own over the root of their number.
        unseen_skewness: what so few groups may hide of it, to either side.
        answers: right-or-wrong items that stand alone: how many became wrong, became right, all.
        limits: what the change cannot lie beyond, where losses are bounded.
    """

    estimate: float
    center: float
    error: float
    freedom: float
    num_groups: int
    skewness: float = 0.0
    unseen_skewness: float = 0.0
    answers: tuple[int, int, int] | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)

    def upper_bound(self, confidence: float) -> float:
        """The true change lies below with this confidence."""
        return self._end(confidence, 1.0)

    def lower_bound(self, confidence: float) -> float:
        """The true change lies above with this confidence."""
        return self._end(confidence, -1.0)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Both ends, each with half of what is left."""
        one_sided = 0.5 + confidence / 2.0
        return Interval(self.estimate, self.lower_bound(one_sided), self.upper_bound(one_sided))

    def as_of(self, num_groups: int) -> ChangeBound:
        """What so many groups like these would show, were their mean the same.

        Args:
            num_groups: at least 2.
        """
        ratio = num_groups / self.num_groups
        # Of right-or-wrong sets the center is drawn away from the estimate by groups taken as seen:
        # as many of them among more weigh less.
        center = self.estimate + (self.center - self.estimate) / ratio
        scaled_answers = self.answers
        if scaled_answers is not None:
            worse, better, total = scaled_answers
            scaled_answers = round(worse * ratio), round(better * ratio), round(total * ratio)
        return replace(
            self,
            center=center,
            error=self.error / math.sqrt(ratio),
            # Effective groups grow in proportion, and degrees of freedom are one fewer. The
            # skewness of a mean falls with the root of the number of groups; what groups may hide
            # of it is a standard error over that same root, and so falls with the number itself.
            freedom=max((self.freedom + 1.0) * ratio - 1.0, 1.0),
            num_groups=num_groups,
            skewness=self.skewness / math.sqrt(ratio),
            unseen_skewness=self.unseen_skewness / ratio,
            answers=scaled_answers,
        )

    def spread_of_bound(self, confidence: float) -> float:
        """Standard deviation of the upper bound itself, from sample to sample: estimate and error
        move together where losses are skewed, and the error is not sure of itself.

        Reference:
            Kendall & Stuart 1977, The advanced theory of statistics, volume 1, section 10.9 (the
            covariance of a mean and a variance is the third cumulant over their number).
        """
        if self.error == 0.0:
            return 0.0
        bound_reach = (self.upper_bound(confidence) - self.estimate) / self.error
        # A long tail below would lessen the spread; that is not counted on.
        joint_movement = bound_reach * max(_MISSED * self.skewness, 0.0)
        return self.error * math.sqrt(1.0 + joint_movement + bound_reach**2 / (2.0 * self.freedom))

    def chance_to_show_below(self, limit: float, confidence: float) -> float:
        """Chance that other groups like these put their upper bound at a limit or below it, were
        the true change the estimate.

        Reference:
            Cohen 1988, Statistical power analysis, chapter 2.
        """
        if self.num_groups < 2:
            return 0.0
        room_left = limit - self.upper_bound(confidence)
        if self.error == 0.0:
            return float(room_left >= 0.0)
        return float(stdtr(self.freedom, room_left / self.spread_of_bound(confidence)))

    def _end(self, confidence: float, sign: float) -> float:
        if self.num_groups < 2:
            return sign * math.inf
        if self.error == 0.0:
            return self.estimate
        end_reach = self._reach(float(ndtri(confidence)), sign)
        bound_end = self.center + sign * end_reach * self.error
        if self.answers is not None:
            bound_end = self._tango_end(1.0 - confidence, sign, bound_end)
        # The center may lie beyond the estimate, as groups were added to it; no end may lie on the
        # estimate's other side, nor beyond what can be, which Student's reach may leave.
        bound_end = sign * max(sign * bound_end, sign * self.estimate)
        return max(min(bound_end, self.limits[1]), self.limits[0])

    def _reach(self, z: float, sign: float) -> float:
        """Errors from the center to an end: Student's t, and what a long tail on that side adds.

        A mean whose tail was not drawn lies too low and seems too sure of it. By how much is the
        Cornish-Fisher expansion of the studentized mean, to the second order in the skewness, in
        the proportion of Student's quantile to the normal one.

        Args:
            z: normal quantile of the confidence.
            sign: 1 of the upper end, -1 of the lower one.

        Reference:
            Johnson 1978, Modified t tests and confidence intervals for asymmetrical populations;
            Hall 1992, The bootstrap and Edgeworth expansion, sections 2.5 and 3.10.
        """
        # From the lower tail, whose small chances keep their digits; a chance near 1 would round to
        # 1, and its quantile to infinity.
        student_value = -float(stdtrit(self.freedom, ndtr(-z)))
        # Never below zero: a tail to the other side is no reason to draw this end inwards.
        skewness = max(_MISSED * sign * self.skewness + self.unseen_skewness, 0.0)
        if skewness == 0.0 or z <= 0.0:
            return student_value
        first_order = skewness * (2.0 * z * z + 1.0) / 6.0
        # Kept at zero near the middle (z under one half), where it would change its sign.
        second_order = skewness**2 * 5.0 * z * max(4.0 * z * z - 1.0, 0.0) / 72.0
        return student_value * min(1.0 + (first_order + second_order) / z, _WIDEST)

    def _tango_end(self, tail: float, sign: float, end: float) -> float:
        """The farther of an end and that of the score test."""
        assert self.answers is not None  # noqa: S101  (asked for only where it is there)
        num_worse, num_better, total = self.answers
        # The lower end is the upper end of the same table with worse and better exchanged.
        pair = (num_worse, num_better) if sign > 0.0 else (num_better, num_worse)

        def is_kept(limit: float) -> bool:
            return tango_p_value(*pair, total, sign * limit, _ITEM_CORRECTION) > tail

        tango_end = find_last_kept(is_kept, self.estimate, sign, 1.0)
        return sign * max(sign * end, sign * tango_end)
