"""How much a set can see, against studies of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.statistics.change_bound import ChangeBound
from toolkit.statistics.paired import PairedChanges
from toolkit.statistics.power import needed_answers, needed_groups, power_of, smallest_shown
from toolkit.statistics.set_changes import BOUNDED_CHANGE, SetChanges

STUDIES = 800


def change_of(values: np.ndarray) -> ChangeBound:
    return PairedChanges([SetChanges(values[None], np.ones(len(values)))]).change()


@pytest.mark.parametrize(
    ("tail", "groups", "least"),
    [("normal", 8, 0.7), ("normal", 25, 0.75), ("skewed", 8, 0.62), ("skewed", 25, 0.68)],
)
def test_the_smallest_change_is_shown_about_as_often_as_is_said(
    tail: str, groups: int, least: float
):
    # Said are 80 %, by the middle of many pilots: each knows the scatter only roughly, and of eight
    # skewed groups most show too little of it.
    chance = np.random.default_rng([groups, tail == "normal"])
    drawn = chance.normal(size=(STUDIES, groups))
    if tail == "skewed":
        drawn = chance.exponential(size=(STUDIES, groups)) - 1.0
    changes = [change_of(values) for values in drawn]
    wanted = float(np.median([smallest_shown(change) for change in changes]))
    shown = np.mean([change.upper_bound(0.95) <= wanted for change in changes])
    assert least <= shown <= 0.9


@pytest.mark.parametrize("values", [[1.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.1, 0.0, 3.0, 0.2]])
def test_needed_groups_are_the_fewest_that_are_enough(values: list[float]):
    pilot = change_of(np.array(values))
    needed = needed_groups(pilot, 0.2)
    assert smallest_shown(pilot.as_of(needed)) <= 0.2
    assert smallest_shown(pilot.as_of(needed - 1)) > 0.2


def test_what_shows_nothing_needs_more_groups():
    pilot = change_of(np.linspace(-0.1, 0.1, 12))
    power = power_of("news", "general", "bits per byte", 12, 0.01, pilot)
    assert power.smallest_change > 0.01
    assert power.needed is not None
    assert power.needed > 12
    alone = power_of("news", "general", "bits per byte", 9, 0.01, change_of(np.array([0.1])))
    assert (alone.smallest_change, alone.needed) == (math.inf, None)


def test_a_set_that_does_not_scatter_is_enough():
    still = change_of(np.zeros(9))
    power = power_of("news", "general", "bits per byte", 9, 0.01, still)
    assert (power.smallest_change, power.needed, power.is_enough) == (0.0, 2, True)


@pytest.mark.parametrize("tolerance", [1e-12, 1e-200])
def test_what_no_set_is_large_enough_for_is_said_all_the_same(tolerance: float):
    pilot = change_of(np.linspace(-0.1, 0.1, 12))
    assert needed_groups(pilot, tolerance) > 10**15
    assert needed_answers(tolerance, 0.1) > 10**15


def test_a_bounded_set_that_improves_can_show_that_it_loses_little():
    gains = np.array([[-0.9, -0.2, -0.8, -0.1, -0.9, -0.3]])
    part = SetChanges(gains, np.ones(6), added_groups=BOUNDED_CHANGE, limits=(-1.0, 1.0))
    power = power_of("ifeval", "general", "error", 6, 0.05, PairedChanges([part]).change())
    assert power.needed is not None
    assert 6 < power.needed < 10_000
