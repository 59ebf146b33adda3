"""Quantiles and chances of Student's t, as numbers."""

from __future__ import annotations

from scipy.special import stdtr, stdtrit


def student_quantile(chance: float, freedom: int) -> float:
    """The value that Student's t stays below with this chance.

    Args:
        chance: in (0, 1).
        freedom: degrees of freedom, at least 1.

    >>> round(student_quantile(0.975, 10), 4), round(student_quantile(0.95, 7), 4)
    (2.2281, 1.8946)
    """
    return float(stdtrit(freedom, chance))


def student_chance(value: float, freedom: int) -> float:
    """Chance that Student's t is at most this value.

    >>> round(student_chance(2.2281, 10), 4)
    0.975
    """
    return float(stdtr(freedom, value))
