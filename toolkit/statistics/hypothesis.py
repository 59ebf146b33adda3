"""Claims about models: not worse, better, better among many.

Losses are compared on the same items, candidate minus reference, lower better.
Legend: N items, G groups, K candidates, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from toolkit.statistics.bootstrap import Figures, Floats, upper_bounds
from toolkit.statistics.group_sums import group_sums


@dataclass(frozen=True)
class NonInferiority:
    """Whether a loss stays within what is tolerated.

    Attributes:
        estimate: of the loss, candidate minus reference.
        bound: one-sided upper bound of it.
        holds: whether the bound is within the tolerance.
    """

    estimate: float
    bound: float
    holds: bool


def non_inferior(
    differences: Figures, tolerance: float, confidence: float = 0.95
) -> list[NonInferiority]:
    """Test that candidates lose no more than a tolerance.

    Args:
        differences: of losses, candidates minus reference, from `bootstrap_figures`.
        tolerance: largest loss accepted, in the figures' unit.
        confidence: of the bound; the chance to pass a candidate that loses more is at most the
            rest.

    Reference:
        Piaggio et al. 2012, Reporting of noninferiority and equivalence randomized trials.

    >>> from toolkit.statistics.bootstrap import bootstrap_figures
    >>> losses = [0.01, 0.0, 0.02, 0.01]
    >>> found = bootstrap_figures(losses, [1, 1, 1, 1], "abcd", resamples=500, seed=0)
    >>> [one.holds for limit in (0.05, 0.015) for one in non_inferior(found, limit)]
    [True, False]
    """
    bounds = upper_bounds(differences, confidence)
    return [
        NonInferiority(float(estimate), float(bound), bool(bound <= tolerance))
        for estimate, bound in zip(differences.estimate, bounds, strict=True)
    ]


def max_t(differences: Figures) -> Floats:
    """Adjusted p-values of "this candidate gains", `[K]`, over all candidates at once.

    The best of many candidates looks better than it is. Here each candidate's studentized gain is
    held against the largest of all candidates' in resamples around no gain, step down: the chance
    that any candidate without a gain is called a gain stays within the level.

    Args:
        differences: of losses, candidates minus reference: negative is a gain.

    Reference:
        Westfall & Young 1993, Resampling-based multiple testing, algorithm 2.8 (maxT);
        Romano & Wolf 2005, Stepwise multiple testing as formalized data snooping.

    >>> from toolkit.statistics.bootstrap import bootstrap_figures
    >>> losses = [[-1.0, -1.1, -0.9, -1.2, -0.8, -1.0, -1.1], [0.1, -0.1, 0.2, -0.2, 0.0, 0.1, 0.0]]
    >>> found = bootstrap_figures(losses, [1] * 7, "abcdefg", resamples=2000, seed=0)
    >>> gains = max_t(found)
    >>> bool(gains[0] < 0.01), bool(gains[1] > 0.5)
    (True, True)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(
            differences.error > 0.0,
            -differences.estimate / differences.error,
            np.where(differences.estimate < 0.0, np.inf, 0.0),
        )
    order = np.argsort(-statistic, kind="stable")
    # Largest deviation among this candidate and all that look worse.
    largest = np.maximum.accumulate((-differences.deviations[:, order])[:, ::-1], axis=1)[:, ::-1]
    above = (largest >= statistic[order]).sum(axis=0)
    stepped = np.maximum.accumulate((1.0 + above) / (1.0 + len(largest)))
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return adjusted


def simultaneous_bounds(differences: Figures, confidence: float = 0.95) -> Floats:
    """Upper bounds of all candidates' losses that hold together, `[K]`.

    Reference:
        Westfall & Young 1993, section 2.4 (single-step maxT).

    >>> from toolkit.statistics.bootstrap import bootstrap_figures
    >>> losses = [[0.0, 0.2, 0.1, 0.3], [0.3, 0.1, 0.0, 0.2]]
    >>> found = bootstrap_figures(losses, [1] * 4, "abcd", resamples=999, seed=0)
    >>> bool((simultaneous_bounds(found) >= upper_bounds(found)).all())
    True
    """
    reach = float(np.quantile((-differences.deviations).max(axis=1), confidence))
    together = differences.estimate + reach * differences.error
    return np.maximum(together, upper_bounds(differences, confidence))


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values of several tests, whatever their dependence, `[K]`.

    Reference:
        Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def mcnemar(right: Sequence[bool], reference_right: Sequence[bool]) -> float:
    """Two-sided exact p-value that two models answer equally well, from the same questions.

    Args:
        right: whether one model answered each question rightly.
        reference_right: the same of the other.

    Reference:
        McNemar 1947; the exact form is a binomial test on the questions where they differ.

    >>> mcnemar([True] * 6 + [False], [False] * 6 + [False])
    0.03125
    """
    ahead = sum(a and not b for a, b in zip(right, reference_right, strict=True))
    behind = sum(b and not a for a, b in zip(right, reference_right, strict=True))
    total, fewer = ahead + behind, min(ahead, behind)
    chance = sum(math.comb(total, number) for number in range(fewer + 1)) / 2**total
    return float(min(1.0, 2.0 * chance))


def paired_permutation(
    losses: ArrayLike,
    reference: ArrayLike,
    groups: Sequence[str],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value that two models are exchangeable: signs of whole groups are flipped.

    Args:
        losses: of one model, `[N]`.
        reference: of the other, `[N]`.
        groups: of each item.
        permutations: how many; with few groups all of them are taken.
        seed: of the permutations.

    Reference:
        Fisher 1935, The design of experiments, section 21; Phipson & Smyth 2010 for the added one.

    >>> paired_permutation([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], "abcd")
    0.125
    """
    moved = np.asarray(losses, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    sums = group_sums(moved, groups)
    seen = abs(float(sums.sum())) * (1.0 - 1e-12)
    if 2 ** len(sums) <= permutations:
        bits = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((2.0 * bits - 1.0) @ sums) >= seen).mean())
    generator = np.random.default_rng(seed)
    extreme, step = 0, max(1, (1 << 22) // len(sums))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        signs = generator.integers(0, 2, size=(count, len(sums))) * 2.0 - 1.0
        extreme += int((np.abs(signs @ sums) >= seen).sum())
    return (1.0 + extreme) / (1.0 + permutations)
