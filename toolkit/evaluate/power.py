"""How much a set can see, and how many groups would be needed to see more."""

from __future__ import annotations

import math
from statistics import NormalDist

from toolkit.evaluate.student import student_chance, student_quantile


def power(difference: float, error: float, num_groups: int, confidence: float = 0.95) -> float:
    """Chance that a one-sided bound shows a true difference of this size.

    Args:
        difference: true one, in the unit of `error`; for non-inferiority, what is left of the
            tolerance.
        error: standard error with so many groups.
        num_groups: as `error` was found with.
        confidence: of the bound.

    Reference:
        Cohen 1988, Statistical power analysis, chapter 2 (normal approximation to noncentral t).

    >>> round(power(0.02, 0.01, 30), 2), round(power(0.0, 0.01, 30), 2)
    (0.62, 0.05)
    """
    if error <= 0.0:
        return 1.0 if difference > 0.0 else 1.0 - confidence
    limit = student_quantile(confidence, max(1, num_groups - 1))
    return 1.0 - student_chance(limit - difference / error, max(1, num_groups - 1))


def detectable_difference(
    error: float, num_groups: int, confidence: float = 0.95, wanted: float = 0.8
) -> float:
    """The smallest true difference that is shown with the wanted chance.

    >>> round(detectable_difference(0.01, 30), 4)
    0.0255
    """
    freedom = max(1, num_groups - 1)
    return error * (student_quantile(confidence, freedom) + student_quantile(wanted, freedom))


def needed_groups(
    difference: float,
    error: float,
    num_groups: int,
    confidence: float = 0.95,
    wanted: float = 0.8,
) -> int:
    """How many groups see a difference of this size with the wanted chance.

    Args:
        difference: to be seen, above zero.
        error: standard error found with `num_groups` groups.
        num_groups: of the set at hand, or of a pilot.
        confidence: of the one-sided bound.
        wanted: chance to see it.

    Reference:
        Lachin 1981, Introduction to sample size determination, equation 1; one more step for t.

    >>> needed_groups(0.01, 0.01, 30), needed_groups(0.0256, 0.01, 30)
    (187, 30)
    """
    normal = NormalDist()
    reach = normal.inv_cdf(confidence) + normal.inv_cdf(wanted)
    one = error * math.sqrt(num_groups)  # standard error with a single group
    count = max(2, math.ceil((reach * one / difference) ** 2))
    while detectable_difference(one / math.sqrt(count), count, confidence, wanted) > difference:
        count += 1
    return count


def too_small(
    name: str,
    tolerance: float,
    error: float,
    num_groups: int,
    unit: str,
    confidence: float = 0.95,
) -> str | None:
    """A sentence where a set cannot see a tolerance: who loses nothing would seldom pass.

    >>> print(too_small("news", 0.01, 0.01, 20, "bits per byte"))
    news: 20 groups see a loss of 0.026 bits per byte at the earliest, the tolerance is 0.01; with \
this much scatter about 126 groups are needed.
    >>> too_small("news", 0.1, 0.01, 20, "bits per byte")
    """
    seen = detectable_difference(error, num_groups, confidence)
    if not math.isfinite(seen) or tolerance <= 0.0 or seen <= tolerance:
        return None
    needed = needed_groups(tolerance, error, num_groups, confidence)
    return (
        f"{name}: {num_groups} groups see a loss of {seen:.2g} {unit} at the earliest, the "
        f"tolerance is {tolerance:g}; with this much scatter about {needed} groups are needed."
    )
