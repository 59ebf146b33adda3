"""An estimate with its two ends, and the quantiles that reach them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# scipy.special, as scipy.stats takes a second to import and fifty times as long for one value.
from scipy.special import chdtri, ndtri, stdtrit

Sign = Literal["", "+"]
"""Of a figure in words: `+` before what is not below zero, or nothing."""


def figure_text(value: float, form: str) -> str:
    """A figure in a format; what rounds to zero is zero, not minus zero.

    >>> figure_text(-0.00001, ".4f"), figure_text(-0.00001, "+.2f"), figure_text(-0.5, ".1f")
    ('0.0000', '+0.00', '-0.5')
    """
    text = format(value, form)
    is_minus_zero = text.startswith("-") and not text.strip("-0.")
    return text.replace("-", "+" if form.startswith("+") else "") if is_minus_zero else text


def decimals(value: float, places: int = 4, sign: Sign = "") -> str:
    """A figure with so many decimals; see `figure_text`."""
    return figure_text(value, f"{sign}.{places}f")


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval."""

    estimate: float
    low: float
    high: float

    def ends(self, places: int = 4, sign: Sign = "") -> str:
        """Such as `-0.25 to +1.25`."""
        return f"{decimals(self.low, places, sign)} to {decimals(self.high, places, sign)}"

    def words(self, places: int = 4, sign: Sign = "") -> str:
        """The estimate with its interval.

        >>> Interval(0.5, -0.25, 1.25).words(2, "+")
        '+0.50 (-0.25 to +1.25)'
        """
        return f"{decimals(self.estimate, places, sign)} ({self.ends(places, sign)})"


def normal_quantile(chance: float) -> float:
    """The value that a standard normal variable stays below with this chance.

    >>> round(normal_quantile(0.95), 3)
    1.645
    """
    return float(ndtri(chance))


def student_quantile(chance: float, freedom: float) -> float:
    """The value that Student's t stays below with this chance.

    Args:
        chance: in (0, 1).
        freedom: degrees of freedom, at least 1.

    >>> round(student_quantile(0.975, 10), 4), round(student_quantile(0.95, 7), 4)
    (2.2281, 1.8946)
    """
    return float(stdtrit(freedom, chance))


def deviation_interval(num_values: int, confidence: float = 0.95) -> Interval:
    """The true standard deviation of normal values as a multiple of the one that was found.

    Args:
        num_values: values that it was found from, at least 2.
        confidence: in (0, 1).

    Reference:
        Snedecor & Cochran 1989, Statistical methods, section 5.11.

    >>> found = deviation_interval(3)
    >>> f"{found.low:.2f} to {found.high:.2f}"
    '0.52 to 6.28'
    """
    freedom, tail = num_values - 1, (1.0 - confidence) / 2.0
    # chdtri takes the chance of the upper tail: a small one gives a large quantile, and that the
    # low factor.
    low_factor, high = (math.sqrt(freedom / float(chdtri(freedom, t))) for t in (tail, 1.0 - tail))
    return Interval(1.0, low_factor, high)


def find_last_kept(
    is_kept: Callable[[float], bool], start: float, sign: float, limit: float = 1e6
) -> float:
    """The last value in one direction that is not refuted, by doubling and halving."""
    last_kept, step_size = start, 1e-3
    while True:
        first_refuted = sign * min(sign * start + step_size, limit)
        if not is_kept(first_refuted):
            break
        # A share ends at 1, and that is then the end itself; anything else that is not refuted so
        # far out has none.
        if first_refuted == sign * limit:
            return first_refuted if limit == 1.0 else sign * math.inf
        last_kept, step_size = first_refuted, 2.0 * step_size
    # Relative precision, but no finer than 1e-12: near zero it could never be reached.
    while abs(first_refuted - last_kept) > 1e-9 * max(abs(first_refuted), 1e-3):
        middle_value = (last_kept + first_refuted) / 2.0
        last_kept, first_refuted = (
            (middle_value, first_refuted) if is_kept(middle_value) else (last_kept, middle_value)
        )
    return last_kept
