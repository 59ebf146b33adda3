"""Simulated studies: claims hold as often as they say.

Bands around a share p of S studies are three standard errors of a proportion, 3 √(p (1 - p) / S).
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.errors import EvaluationError
from toolkit.statistics.bootstrap import Figures, bootstrap_figures, intervals
from toolkit.statistics.hypothesis import holm, mcnemar, paired_permutation
from toolkit.statistics.proportions import share_difference

STUDIES = 1000


def band(share: float, studies: int = STUDIES) -> float:
    return 3.0 * math.sqrt(share * (1.0 - share) / studies)


def study(
    chance: np.random.Generator, gains: list[float], groups: int, *, seed: int, resamples: int = 299
) -> Figures:
    """Differences of a sweep of candidates: alike, skewed, two documents a group."""
    sizes = chance.lognormal(6.0, 0.5, size=2 * groups)
    shared = np.repeat(chance.gamma(1.0, 0.03, size=groups) - 0.03, 2)
    own = chance.normal(0.0, 0.03, size=(len(gains), 2 * groups))
    strength = np.linspace(0.2, 1.0, len(gains))[:, None]
    losses = sizes * (strength * (shared + own) - np.array(gains)[:, None])
    names = [f"g{n // 2}" for n in range(2 * groups)]
    return bootstrap_figures(losses, sizes, names, resamples=resamples, seed=seed)


def test_a_resample_is_the_ratio_of_its_groups():
    # groups a = (1 + 3) over (1 + 1), b = 6 over 1: means 2 and 6, both 10 / 3
    found = bootstrap_figures([1.0, 3.0, 6.0], [1.0, 1.0, 1.0], "aab", resamples=100, seed=1)
    assert found.estimate == pytest.approx([10.0 / 3.0])
    assert {round(float(draw), 9) for draw in found.draws[:, 0]} == {2.0, round(10.0 / 3.0, 9), 6.0}
    # residuals 4 - 2 · 10/3 and 6 - 10/3, so √(2 · 2 · (8/3)²) / 3
    assert found.error == pytest.approx([math.sqrt(2.0 * 2.0 * (8.0 / 3.0) ** 2) / 3.0])
    again = bootstrap_figures([1.0, 3.0, 6.0], [1.0, 1.0, 1.0], "aab", resamples=100, seed=1)
    assert (again.draws == found.draws).all()


def test_one_group_has_no_interval():
    with pytest.raises(EvaluationError, match="at least 2 groups"):
        bootstrap_figures([1.0, 2.0], [1.0, 1.0], "aa", resamples=10, seed=0)


def test_a_model_against_itself_is_sure():
    found = bootstrap_figures([0.0] * 5, [1.0] * 5, "abcde", resamples=100, seed=0)
    (interval,) = intervals(found)
    assert (interval.low, interval.high) == (0.0, 0.0)


@pytest.mark.parametrize(("groups", "shortfall"), [(8, 0.03), (20, 0.02), (40, 0.01)])
def test_intervals_cover_as_they_say(groups: int, shortfall: float):
    # Skewed differences; the shortfall with few groups is what the docstring states.
    chance = np.random.default_rng(groups)
    covered = 0
    for number in range(STUDIES):
        found = study(chance, [0.02], groups, seed=number)
        (interval,) = intervals(found)
        covered += interval.low <= -0.02 <= interval.high
    assert 0.95 - shortfall - band(0.95) <= covered / STUDIES <= 0.98 + band(0.98)


def test_intervals_of_accuracies_cover_too():
    chance = np.random.default_rng(9)
    covered = 0
    for number in range(STUDIES):
        draw = chance.random(60)
        moved = np.where(draw < 0.08, 1.0, np.where(draw < 0.12, -1.0, 0.0))
        names = [str(n) for n in range(60)]
        found = bootstrap_figures(moved, [1.0] * 60, names, resamples=299, seed=number)
        (interval,) = intervals(found)
        covered += interval.low <= 0.04 <= interval.high
    assert covered / STUDIES >= 0.95 - band(0.95)


def test_holm_by_hand():
    # sorted 0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1, and never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_mcnemar_by_hand():
    # 5 questions ahead, 1 behind: (5 - 1) / √(5 + 1) normal deviations
    right, other = [True] * 5 + [False] + [True] * 9, [False] * 5 + [True] + [True] * 9
    assert mcnemar(right, other) == pytest.approx(math.erfc(4.0 / math.sqrt(6.0) / math.sqrt(2.0)))
    assert mcnemar(other, right) == pytest.approx(mcnemar(right, other))
    assert mcnemar([True, False], [True, False]) == 1.0


@pytest.mark.parametrize("total", [7, 20, 60])
def test_the_interval_of_a_difference_holds_zero_where_the_test_does_not_reject(total: int):
    for ahead in range(total + 1):
        for behind in range(total + 1 - ahead):
            same = [True] * (total - ahead - behind)
            right = [True] * ahead + [False] * behind + same
            other = [False] * ahead + [True] * behind + same
            p_value, interval = mcnemar(right, other), share_difference(right, other)
            if abs(p_value - 0.05) > 1e-6:  # ends are found to so many digits
                assert (p_value > 0.05) is (interval.low <= 0.0 <= interval.high), (ahead, behind)


def test_permutations_by_hand_and_by_chance():
    # Sums 3, 1, -1: of eight sign patterns |±3 ± 1 ± 1| >= 3 holds in six.
    assert paired_permutation([3.0, 1.0, 0.0], [0.0, 0.0, 1.0], "abc") == 0.75
    # Items of one group flip together: sums 4, -1; |±4 ± 1| >= 3 always.
    assert paired_permutation([3.0, 1.0, 0.0], [0.0, 0.0, 1.0], "aab") == 1.0
    chance = np.random.default_rng(4)
    names = [str(n) for n in range(30)]
    values = [
        paired_permutation(chance.normal(size=30), np.zeros(30), names, permutations=199, seed=n)
        for n in range(400)
    ]
    assert abs(np.mean(np.array(values) <= 0.05) - 0.05) <= band(0.05, 400)
