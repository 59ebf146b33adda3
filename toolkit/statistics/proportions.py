"""Right-or-wrong items under two models: the score test of a difference of shares.

Intervals for shares of right answers, where every question stands for itself.

A resample of few answers, of which nearly all are alike, has no variation, and the bootstrap then
has no end, or one of no width; these have neither fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from scipy.special import ndtr

from toolkit.statistics.interval import Interval, find_last_kept


def tango_p_value(
    worse: int, better: int, total: int, limit: float, correction: float = 0.0
) -> float:
    """Chance of so few losses, were the true share of answers lost `limit` or more.

    Args:
        worse: items right under the reference and wrong under the candidate.
        better: items wrong under the reference and right under the candidate.
        total: all items.
        limit: of the difference of the shares of errors, in [-1, 1].
        correction: items added to the losses shown, for continuity.

    Reference:
        Tango 1998, Equivalence test and confidence interval for the difference in proportions for
        the paired-sample design, equations 4 and 5.

    >>> round(tango_p_value(0, 0, 14, 0.01), 3)  # fourteen of which none changed prove nothing
    0.353
    >>> round(tango_p_value(1, 4, 100, 0.05), 4)
    0.0036
    """
    # The share that became right, most likely under the limit: the root of a quadratic.
    a = 2.0 * total
    b = -worse - better + (2.0 * total - worse + better) * limit
    c = -better * limit * (1.0 - limit)
    likely_gain = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = total * (2.0 * likely_gain + limit * (1.0 - limit))
    shown_loss = worse - better - total * limit + correction
    # At a limit of 0 where no answer changed, and at a limit of 1 whatever changed, nothing
    # scatters: the sign alone decides.
    if variance <= 0.0:
        return 1.0 if shown_loss >= 0.0 else 0.0
    return float(ndtr(shown_loss / math.sqrt(variance)))


def share_interval(num_right: int, total: int, confidence: float = 0.95) -> Interval:
    """Interval of a share, within [0, 1].

    Args:
        num_right: right answers, 0 to `total`.
        total: answers, at least 1.
        confidence: in (0, 1).

    Reference:
        Wilson 1927, Probable inference; Brown, Cai & DasGupta 2001, Interval estimation for a
        binomial proportion, who recommend it.

    >>> found = share_interval(16, 20)
    >>> round(found.low, 4), round(found.high, 4)
    (0.584, 0.9193)
    """
    from scipy.stats import binomtest  # takes a second to import

    share = num_right / total
    ends = binomtest(num_right, total).proportion_ci(confidence, method="wilson")
    # At 0 and 1 it ends there, but for rounding.
    return Interval(
        share, max(0.0, min(float(ends.low), share)), min(1.0, max(float(ends.high), share))
    )


def share_difference(
    right: Sequence[bool], reference_right: Sequence[bool], confidence: float = 0.95
) -> Interval:
    """Difference of two models' shares on the same questions, within [-1, 1]: all differences that
    the score test does not refute. Zero is among them just where `mcnemar` says so.

    Args:
        right: whether one model answered each question rightly.
        reference_right: the same of the other.
        confidence: in (0, 1).

    Reference:
        Tango 1998; Fagerland, Lydersen & Laake 2014, Recommended tests and confidence intervals for
        paired binomial proportions.

    >>> found = share_difference([True] * 15 + [False] * 5, [True] * 16 + [False] * 4)
    >>> found.estimate, round(found.low, 4), round(found.high, 4)
    (-0.05, -0.2361, 0.1192)
    """
    tail, total = (1.0 - confidence) / 2.0, len(right)
    ahead, behind = count_differing(right, reference_right)
    estimate = (ahead - behind) / total

    def is_kept(difference: float, sign: float) -> bool:
        # Of the model that answers worse: the lower end is the upper end with both exchanged.
        pair = (ahead, behind) if sign > 0.0 else (behind, ahead)
        return tango_p_value(*pair, total, sign * difference) > tail

    low, high = (
        find_last_kept(partial(is_kept, sign=sign), estimate, sign, 1.0) for sign in (-1.0, 1.0)
    )
    return Interval(estimate, low, high)


def count_differing(right: Sequence[bool], reference_right: Sequence[bool]) -> tuple[int, int]:
    """Questions that one model answers rightly and the other does not, and the other way round."""
    pairs = list(zip(right, reference_right, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
