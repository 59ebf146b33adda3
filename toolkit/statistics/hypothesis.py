"""Tests of two models on the same items, and of several at once.

Legend: N items, K tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from toolkit.statistics.bootstrap import Floats
from toolkit.statistics.proportions import count_differing, tango_p_value
from toolkit.statistics.ratios import group_sums


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values of several tests, whatever their dependence, `[K]`.

    Reference:
        Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    raw_values = np.asarray(p_values, dtype=np.float64)
    rising_order = np.argsort(raw_values, kind="stable")
    # The smallest times K, the next times K - 1; none may be surer than a smaller one before it.
    stepped = np.maximum.accumulate(raw_values[rising_order] * np.arange(len(raw_values), 0, -1))
    adjusted_values = np.empty_like(raw_values)
    adjusted_values[rising_order] = np.minimum(stepped, 1.0)
    return adjusted_values


def mcnemar(right: Sequence[bool], reference_right: Sequence[bool]) -> float:
    """Two-sided p-value that two models answer equally well, from the same questions.

    The score test, without a correction for continuity: its interval is `share_difference`, so that
    the two never tell different stories. The exact form rejects less than it says.

    Args:
        right: whether one model answered each question rightly.
        reference_right: the same of the other.

    Reference:
        McNemar 1947; Fagerland, Lydersen & Laake 2013, The McNemar test for binary matched-pairs
        data: mid-p and asymptotic are better than exact conditional.

    >>> round(mcnemar([True] * 6 + [False], [False] * 6 + [False]), 4)
    0.0143
    """
    num_ahead, num_behind = count_differing(right, reference_right)
    # Questions that both answer alike do not say which is better; if all are, nothing does.
    if num_ahead == num_behind:
        return 1.0
    worse, better = sorted((num_ahead, num_behind))
    return 2.0 * tango_p_value(worse, better, len(right), 0.0)


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
    item_changes = np.asarray(losses, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    change_sums = group_sums(item_changes, groups)
    # A hair less, so that the permutation that is the sample itself counts as extreme.
    seen_change = abs(float(change_sums.sum())) * (1.0 - 1e-12)
    # All patterns of signs, the sample's own among them: the chance is exact, and nothing has to be
    # added to it.
    if 2 ** len(change_sums) <= permutations:
        sign_bits = np.arange(2 ** len(change_sums))[:, None] >> np.arange(len(change_sums)) & 1
        return float((np.abs((2.0 * sign_bits - 1.0) @ change_sums) >= seen_change).mean())
    # In chunks, as the signs of many groups for all permutations would not fit into memory.
    generator = np.random.default_rng(seed)
    num_extreme, chunk_size = 0, max(1, (1 << 22) // len(change_sums))
    for first_permutation in range(0, permutations, chunk_size):
        num_permutations = min(chunk_size, permutations - first_permutation)
        signs = generator.integers(0, 2, size=(num_permutations, len(change_sums))) * 2.0 - 1.0
        num_extreme += int((np.abs(signs @ change_sums) >= seen_change).sum())
    return (1.0 + num_extreme) / (1.0 + permutations)
