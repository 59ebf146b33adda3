"""The choice in simulated studies through the real search and decision, with wide margins.

`make bench-choice` holds them to the figures; here what would be a blunder is caught.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.search.worlds import WORLDS, StudyFigures, run_study


def studies(world: str, count: int) -> list[StudyFigures]:
    return [run_study(WORLDS[world], 1000 + number) for number in range(count)]


def test_a_good_merge_is_found_and_no_method_is_said_to_beat_the_sweep():
    found = studies("finance", 30)
    assert sum(not s.is_merge for s in found) <= 1
    assert sum(s.is_merge and not s.is_within for s in found) <= 4
    assert np.mean([s.gain / s.best_plain for s in found]) > 0.85
    assert sum(s.beats for s in found) <= 4
    assert np.mean([s.token_share for s in found]) < 0.5


def test_no_gain_is_claimed_where_there_is_none():
    assert sum(s.is_merge for s in studies("no gain", 20)) <= 3


def test_a_method_that_is_better_is_found():
    assert sum(s.beats for s in studies("ties 8 % better", 10)) >= 5


@pytest.mark.parametrize("seed", [3, 4])
def test_the_same_study_twice(seed: int):
    one, two = (run_study(WORLDS["14 documents"], seed) for _ in range(2))
    assert one == two
