"""Right-or-wrong items under two models: the score test of a difference of shares."""

from __future__ import annotations

import math

from scipy.special import ndtr


def tango_p_value(worse: int, better: int, total: int, limit: float) -> float:
    """Chance of so few losses, were the true share of answers lost `limit` or more.

    Args:
        worse: items right under the reference and wrong under the candidate.
        better: items wrong under the reference and right under the candidate.
        total: all items.
        limit: of the difference of the shares of errors, in [-1, 1].

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
    root = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = total * (2.0 * root + limit * (1.0 - limit))
    moved = worse - better - total * limit
    if variance <= 0.0:
        return 1.0 if moved >= 0.0 else 0.0
    return float(ndtr(moved / math.sqrt(variance)))
