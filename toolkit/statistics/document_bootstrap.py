"""Bootstrap by document: what a difference in bits per byte is worth.

Documents are resampled, not tokens: tokens of one document are alike, and an interval over tokens
would be far too narrow. Compared models are scored on the same documents, so differences are
resampled in pairs. Legend: D documents, R resamples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.statistics.interval import Interval

Floats = NDArray[np.float64]


def bits_per_byte(nats: ArrayLike, num_bytes: ArrayLike) -> float:
    """Sum of nats over sum of bytes, in bits: comparable between tokenizers.

    >>> round(bits_per_byte([math.log(2.0) * 8.0], [10.0]), 6)
    0.8
    """
    total = float(np.sum(np.asarray(nats, dtype=np.float64)))
    return total / (math.log(2.0) * float(np.sum(np.asarray(num_bytes, dtype=np.float64))))


def resample_counts(num_documents: int, num_resamples: int, seed: int) -> Floats:
    """How often each document is drawn in each resample, `[R, D]`.

    The same counts serve every model, which is what makes comparisons paired.
    """
    generator = np.random.default_rng(seed)
    chances = np.full(num_documents, 1.0 / num_documents)
    return generator.multinomial(num_documents, chances, size=num_resamples).astype(np.float64)


def bootstrap_ratios(nats: ArrayLike, num_bytes: ArrayLike, counts: Floats) -> Floats:
    """Bits per byte of every resample, `[R]`.

    Args:
        nats: loss of each document, `[D]`.
        num_bytes: size of each document, `[D]`.
        counts: from `resample_counts`, `[R, D]`.
    """
    top = counts @ np.asarray(nats, dtype=np.float64)
    bottom = counts @ np.asarray(num_bytes, dtype=np.float64)
    return np.asarray(top / (math.log(2.0) * bottom))


def percentile_interval(estimate: float, draws: Floats, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval.

    Reference:
        Efron & Tibshirani 1993, An introduction to the bootstrap, chapter 13.

    >>> interval = percentile_interval(0.5, np.linspace(0.0, 1.0, 101), confidence=0.9)
    >>> round(interval.low, 6), round(interval.high, 6)
    (0.05, 0.95)
    """
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high))


def upper_bound(draws: Floats, confidence: float = 0.95) -> float:
    """One-sided upper bound: the quantity is below it with the given confidence."""
    return float(np.quantile(draws, confidence))
