"""A figure over items and seeds: what other items would change, and what other seeds would.

Every seed is scored on the same items, so the two are crossed: the interval over items is of the
figure's mean over the seeds, and the scatter between seeds is of its value on all items.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from toolkit.statistics.interval import Interval, student_quantile


def widen_by_seeds(
    interval: Interval, seed_values: Sequence[float], confidence: float = 0.95
) -> Interval:
    """An interval over items, widened by the scatter between seeds.

    Each end lies as far out as both errors together, the root of the sum of their squares, which
    keeps the sides of a skewed interval apart. What differs by item and seed at once is in both:
    the interval is wider than it need be there, never narrower. Of one seed nothing is known, and
    the interval is returned as it is.

    Args:
        interval: over items, of the mean over seeds.
        seed_values: the figure of each seed on all items, up to a constant.
        confidence: two-sided, that of `interval`.

    Reference:
        Zou & Donner 2008, Construction of confidence limits about effect measures (MOVER).

    >>> widen_by_seeds(Interval(0.5, 0.2, 0.8), [0.5, 0.5, 0.5])
    Interval(estimate=0.5, low=0.2, high=0.8)
    >>> widened = widen_by_seeds(Interval(0.5, 0.5, 0.5), [0.4, 0.5, 0.6])
    >>> round(widened.high - widened.estimate, 4)  # 4.3027 * 0.1 / sqrt(3)
    0.2484
    """
    if len(seed_values) < 2:
        return interval
    error = statistics.stdev(seed_values) / math.sqrt(len(seed_values))
    reach = student_quantile(0.5 + confidence / 2.0, len(seed_values) - 1) * error
    middle = interval.estimate
    return Interval(
        middle,
        # MOVER: the squares of two reaches add, on each side for itself.
        middle - math.hypot(middle - interval.low, reach),
        middle + math.hypot(interval.high - middle, reach),
    )
