"""Bootstrap of ratios by group, studentized: figures with intervals.

A figure is Σ losses / Σ sizes, a difference of two models on the same items the same with
differences of losses. Groups (documents, companies) are resampled, never items of one group, which
are alike. Legend: N items, G groups, K models or candidates, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.errors import EvaluationError
from toolkit.statistics.interval import Interval, student_quantile
from toolkit.statistics.ratios import group_sums

Floats = NDArray[np.float64]

_CHUNK_ENTRIES = 1 << 22
"""Counts of resamples held at one time."""

_FEW_GROUPS = 8
"""With fewer groups the bootstrap says nothing of its own: of 4 groups one resample in 64 has no
variation at all, and an end would be without limit; of 8 one in two million has none."""

_FAR = 1e6
"""Stands for a studentized deviation without end: a resample without any variation."""


@dataclass(frozen=True)
class Figures:
    """Figures of K models by group, with what is needed to resample them.

    Attributes:
        estimate: figures, `[K]`.
        error: their standard errors, `[K]`, by linearization.
        draws: figures of every resample, `[R, K]`, the same groups for every model.
        deviations: (draw - estimate) / its own standard error, `[R, K]`.
        num_groups: how many were resampled.
    """

    estimate: Floats
    error: Floats
    draws: Floats
    deviations: Floats
    num_groups: int


def bootstrap_figures(
    losses: ArrayLike,
    sizes: ArrayLike,
    groups: Sequence[str],
    *,
    resamples: int,
    seed: int,
    scale: float = 1.0,
) -> Figures:
    """Resample groups; the same seed and number of groups give the same resamples.

    Args:
        losses: of each item under each model, `[K, N]` or `[N]`; differences for comparisons.
        sizes: what losses are divided by, `[N]`.
        groups: of each item, `[N]`.
        resamples: R.
        seed: of the resamples.
        scale: from losses over sizes to the unit wanted.

    Raises:
        EvaluationError: there are fewer than two groups.

    Reference:
        Davison & Hinkley 1997, Bootstrap methods and their application, sections 2.4 and 5.2;
        Cochran 1977, Sampling techniques, chapter 6, for the standard error of a ratio.

    >>> found = bootstrap_figures([1.0, 3.0], [1.0, 1.0], "ab", resamples=200, seed=0)
    >>> float(found.estimate[0]), sorted(set(found.draws[:, 0].tolist()))
    (2.0, [1.0, 2.0, 3.0])
    """
    tops = scale * group_sums(np.atleast_2d(np.asarray(losses, dtype=np.float64)), groups)  # [K, G]
    group_sizes = group_sums(sizes, groups)  # [G]
    num_groups = len(group_sizes)
    if num_groups < 2:
        raise EvaluationError(
            f"an interval needs at least 2 groups (got {num_groups}); give more documents, or "
            "group them more finely."
        )
    estimate = tops.sum(axis=1) / group_sizes.sum()
    small_sample = num_groups / (num_groups - 1)
    # Residuals from the ratio, not from their own mean: a group of another size than most then
    # counts by how far it moves the ratio.
    group_residuals = tops - estimate[:, None] * group_sizes
    error = np.sqrt(small_sample * (group_residuals**2).sum(axis=1)) / group_sizes.sum()

    draws, errors = _resample(tops, group_sizes, resamples, seed)
    return Figures(estimate, error, draws, _deviations(draws, estimate, errors, error), num_groups)


def _resample(tops: Floats, bottoms: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Figures of every resample and their standard errors, `[R, K]` each.

    Args:
        tops: sums of losses by group, `[K, G]`.
        bottoms: sums of sizes by group, `[G]`.
        resamples: R.
        seed: of the resamples.
    """
    num_models, num_groups = tops.shape
    small_sample = num_groups / (num_groups - 1)
    # With these sums of a resample its residuals need not be formed one by one.
    summed_columns = np.concatenate(
        [tops, tops**2, tops * bottoms, bottoms[None], bottoms[None] ** 2]
    ).T  # [G, 3K + 2]
    generator = np.random.default_rng(seed)
    equal_chances = np.full(num_groups, 1.0 / num_groups)
    drawn_figures = np.empty((resamples, num_models))
    drawn_errors = np.empty((resamples, num_models))
    # Counts of all resamples at once would be R times G numbers. Chunks bound the memory, and drawn
    # from one generator in order they change no draw.
    chunk_resamples = max(1, _CHUNK_ENTRIES // num_groups)
    for start in range(0, resamples, chunk_resamples):
        count = min(chunk_resamples, resamples - start)
        # A resample is how often each group was drawn: counts times sums give all resamples in one
        # product.
        counts = generator.multinomial(num_groups, equal_chances, size=count).astype(np.float64)
        sums = counts @ summed_columns
        top, square, cross = (sums[:, n * num_models : (n + 1) * num_models] for n in range(3))
        size_sums, size_squares = sums[:, -2:-1], sums[:, -1:]
        ratio = top / size_sums
        # A sum of squares, expanded; rounding may leave it a hair below zero.
        spread = np.maximum(square - 2.0 * ratio * cross + ratio**2 * size_squares, 0.0)
        drawn_figures[start : start + count] = ratio
        drawn_errors[start : start + count] = np.sqrt(small_sample * spread) / size_sums
    return drawn_figures, drawn_errors


def _deviations(draws: Floats, estimate: Floats, errors: Floats, error: Floats) -> Floats:
    moved = draws - estimate
    # A resample that drew one group many times over has no error to divide by.
    is_varying = errors > 1e-9 * np.maximum(error, 1e-300)
    # Such a draw either is the estimate itself or lies infinitely far off in units of its error. A
    # large finite number stands for that: quantiles would interpolate infinities to NaN.
    far = np.where(np.abs(moved) <= 1e-12 * (np.abs(estimate) + error), 0.0, np.sign(moved) * _FAR)
    return np.where(is_varying, moved / np.where(is_varying, errors, 1.0), far)


def intervals(figures: Figures, confidence: float = 0.95) -> list[Interval]:
    """Two-sided interval of each figure, `[K]`.

    Each end is the farther of the studentized bootstrap's and Student's t. In simulations of 1,000
    studies (8 to 40 groups, skewed losses) the percentile bootstrap and BCa covered 75 to 93 %
    where 95 % was said, the studentized one 88 to 94 %; for losses with few values, such as
    answers right or wrong, it fell to 85 % where t covered 96 %. With fewer than 8 groups t alone.

    Reference:
        Efron & Tibshirani 1993, An introduction to the bootstrap, section 12.5.

    >>> same = bootstrap_figures([2.0, 2.0, 2.0], [1, 1, 1], "abc", resamples=200, seed=0)
    >>> intervals(same)
    [Interval(estimate=2.0, low=2.0, high=2.0)]
    """
    tail = (1.0 - confidence) / 2.0
    low_ends, high_ends = _ends(figures, tail)
    return [
        Interval(float(e), float(a), float(b))
        for e, a, b in zip(figures.estimate, low_ends, high_ends, strict=True)
    ]


def _ends(figures: Figures, tail: float) -> tuple[Floats, Floats]:
    student_value = student_quantile(1.0 - tail, figures.num_groups - 1)
    if figures.num_groups < _FEW_GROUPS:
        student_reach = student_value * figures.error
        return figures.estimate - student_reach, figures.estimate + student_reach
    low_quantiles, high_quantiles = np.quantile(figures.deviations, [tail, 1.0 - tail], axis=0)
    # The ends swap: draws that lie too high say that the estimate may, so the true value is lower.
    low_ends = figures.estimate - np.maximum(high_quantiles, student_value) * figures.error
    high_ends = figures.estimate - np.minimum(low_quantiles, -student_value) * figures.error
    return low_ends, high_ends
