"""Quantiles of Student's t, as numbers."""

from __future__ import annotations

from scipy.special import stdtrit


def student_quantile(chance: float, freedom: float) -> float:
    """The value that Student's t stays below with this chance.

    Args:
        chance: in (0, 1).
        freedom: degrees of freedom, at least 1.

    >>> round(student_quantile(0.975, 10), 4), round(student_quantile(0.95, 7), 4)
    (2.2281, 1.8946)
    """
    return float(stdtrit(freedom, chance))
