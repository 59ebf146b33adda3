"""Quantiles of Student's t and of the normal distribution, without a dependency for two numbers."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist


@lru_cache(maxsize=4096)
def student_quantile(chance: float, freedom: int) -> float:
    """The value that Student's t stays below with this chance.

    Args:
        chance: in (0, 1).
        freedom: degrees of freedom, at least 1.

    Reference:
        Abramowitz & Stegun 1964, 26.7.3 and 26.7.4: the exact distribution for whole degrees.

    >>> round(student_quantile(0.975, 10), 4), round(student_quantile(0.95, 7), 4)
    (2.2281, 1.8946)
    """
    low, high = 0.0, 1.0
    sign = 1.0 if chance >= 0.5 else -1.0
    wanted = max(chance, 1.0 - chance)
    while student_chance(high, freedom) < wanted:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_chance(middle, freedom) < wanted else (low, middle)
    return sign * (low + high) / 2.0


def student_chance(value: float, freedom: int) -> float:
    """Chance that Student's t is at most this value.

    >>> round(student_chance(2.2281, 10), 4)
    0.975
    """
    if freedom > 400:
        return NormalDist().cdf(value * (1.0 - 1.0 / (4.0 * freedom)))
    angle = math.atan(value / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = cosine if freedom % 2 else 1.0
    for number in range(3 if freedom % 2 else 2, freedom, 2):
        term *= cosine**2 * (number - 1) / number
        total += term
    if freedom % 2:
        return 0.5 + (angle + (sine * total if freedom > 1 else 0.0)) / math.pi
    return 0.5 + 0.5 * sine * total
