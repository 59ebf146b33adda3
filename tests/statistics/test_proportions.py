"""Intervals of shares: by hand, and how often they cover, worked out over all outcomes."""

from __future__ import annotations

import itertools
import math

import pytest

from toolkit.statistics.proportions import share_difference, share_interval


def test_nothing_and_everything():
    none, all_ = share_interval(0, 10), share_interval(10, 10)
    # z² / (n + z²) = 3.8415 / 13.8415
    assert (none.estimate, none.low, none.high) == (0.0, 0.0, pytest.approx(0.27753, abs=1e-5))
    assert (all_.estimate, all_.low, all_.high) == (1.0, pytest.approx(0.72247, abs=1e-5), 1.0)


def test_no_difference_seen_is_no_proof_of_none():
    found = share_difference([True, False] * 10, [True, False] * 10)
    reach = 1.959964**2 / (20 + 1.959964**2)  # z² / (n + z²), as none differs
    assert found.estimate == 0.0
    assert (found.low, found.high) == (pytest.approx(-reach), pytest.approx(reach))


def test_it_stays_within_what_a_share_can_be():
    found = share_difference([True] * 3, [False] * 3)
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert -1.0 < found.low < 1.0


@pytest.mark.parametrize("total", [20, 60])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.8])
def test_a_share_is_covered(total: int, share: float):
    covered = 0.0
    for count in range(total + 1):
        found = share_interval(count, total)
        if found.low <= share <= found.high:
            covered += math.comb(total, count) * share**count * (1 - share) ** (total - count)
    assert covered >= 0.925


@pytest.mark.parametrize("total", [20, 40])
@pytest.mark.parametrize("chances", [(0.02, 0.02), (0.02, 0.1), (0.1, 0.1), (0.1, 0.3)])
def test_a_difference_is_covered(total: int, chances: tuple[float, float]):
    ahead, behind = chances
    covered = 0.0
    for better, worse in itertools.product(range(total + 1), repeat=2):
        same = total - better - worse
        if same < 0:
            continue
        right = [True] * better + [False] * worse + [True] * same
        other = [False] * better + [True] * worse + [True] * same
        found = share_difference(right, other)
        if found.low <= ahead - behind <= found.high:
            ways = math.comb(total, better) * math.comb(total - better, worse)
            covered += ways * ahead**better * behind**worse * (1 - ahead - behind) ** same
    assert covered >= 0.93
