"""Tests of two models on the same items, and of several at once.

Legend: N items, K tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from toolkit.statistics.bootstrap import Floats
from toolkit.statistics.ratios import group_sums


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
    from scipy.stats import binomtest  # takes a second to import

    ahead = sum(a and not b for a, b in zip(right, reference_right, strict=True))
    behind = sum(b and not a for a, b in zip(right, reference_right, strict=True))
    return float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


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
