"""Right-or-wrong items under two models: the score test of a difference of shares.

Intervals for shares of right answers, where every question stands for itself.

A resample of few answers, of which nearly all are alike, has no variation, and the bootstrap then
has no end, or one of no width; these have neither fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import ndtr

from toolkit.statistics.interval import Interval, normal_quantile


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
    """Difference of two models' shares on the same questions, within [-1, 1].

    Args:
        right: whether one model answered each question rightly.
        reference_right: the same of the other.
        confidence: in (0, 1).

    Reference:
        Agresti & Min 2005, Simple improved confidence intervals for comparing matched proportions:
        Wald's interval with half an answer more in each cell of the table.

    >>> found = share_difference([True] * 15 + [False] * 5, [True] * 16 + [False] * 4)
    >>> found.estimate, round(found.low, 4), round(found.high, 4)
    (-0.05, -0.17, 0.0791)
    """
    z = normal_quantile(0.5 + confidence / 2.0)
    pairs = list(zip(right, reference_right, strict=True))
    num_ahead, num_behind = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    estimate, enlarged_total = (num_ahead - num_behind) / len(pairs), len(pairs) + 2
    # Half an answer in each of the four cells: two items more, one of them among those that differ,
    # and the net change stays.
    num_differing, net_change = num_ahead + num_behind + 1, num_ahead - num_behind
    wald_reach = z * math.sqrt(num_differing - net_change**2 / enlarged_total) / enlarged_total
    low, high = net_change / enlarged_total - wald_reach, net_change / enlarged_total + wald_reach
    return Interval(estimate, max(-1.0, min(low, estimate)), min(1.0, max(high, estimate)))
