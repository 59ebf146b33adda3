"""The choice by constraint."""

from __future__ import annotations

import pytest

from toolkit.select import (
    Candidate,
    Choice,
    Confirmed,
    SelectSection,
    choose,
    holm,
    knee,
    pareto_front,
    shortlist,
)

SECTION = SelectSection(general_tolerance=0.01)
GENERAL = Candidate("general", 0.80, 1.00, 0.0, 0.0)


def option(name: str, domain: float, bound: float, distance: float = 0.5) -> Candidate:
    return Candidate(name, domain, 1.0, bound, distance)


def decide(
    options: list[Candidate], *, p: float = 1e-4, ties: str = "", **changes: object
) -> Choice:
    """All of the shortlist are confirmed with the same p-value; `ties` are told apart from none."""
    by_name = {o.name: o for o in options}
    few = [
        Confirmed(name, by_name[name].domain, p, by_name[name].distance)
        for name in shortlist(options, "general", SECTION, 3)
    ]

    def is_tied(one: str, other: str) -> bool:
        return one in ties.split() and other in ties.split()

    return choose(options, few, is_tied, "general", SECTION, **changes)  # type: ignore[arg-type]


def test_the_largest_gain_within_tolerance_wins():
    options = [GENERAL, option("safe", 0.75, 0.002), option("best", 0.70, 0.009)]
    choice = decide([*options, option("greedy", 0.65, 0.011)])
    assert choice.chosen == "best"
    assert choice.qualified == ("general", "safe", "best")
    assert choice.any_merge


def test_it_is_the_bound_that_must_stay_within_not_the_estimate():
    lucky = Candidate("lucky", 0.6, 0.99, 0.02, 0.5)  # better on average, but not surely
    assert decide([GENERAL, lucky]).chosen == "general"


def test_what_was_dropped_early_cannot_be_chosen():
    dropped = Candidate("dropped", 0.6, 1.0, 0.0, 0.5, is_complete=False)
    choice = decide([GENERAL, dropped, option("whole", 0.7, 0.0)])
    assert choice.chosen == "whole"
    assert "dropped" not in choice.qualified
    assert "1 were dropped early" in choice.reason


def test_of_ties_the_nearest_to_the_general_model():
    options = [GENERAL, option("far", 0.700, 0.0, 0.9), option("near", 0.702, 0.0, 0.3)]
    assert decide(options).chosen == "far"
    choice = decide(options, ties="far near")
    assert choice.chosen == "near"
    assert "nearest to the general model of 2 that cannot be told apart" in choice.reason
    assert decide(options[::-1], ties="far near").chosen == "near"


def test_what_is_not_confirmed_is_not_chosen():
    options = [GENERAL, option("good", 0.7, 0.0)]
    choice = decide(options, p=0.2)
    assert choice.chosen == "general"
    assert not choice.any_merge
    assert "The general model is kept" in choice.reason
    assert "good came nearest (p = 0.2" in choice.reason


def test_on_the_searchs_own_documents_all_candidates_count():
    options = [GENERAL, option("good", 0.7, 0.0)]
    assert decide(options, p=0.01).chosen == "good"
    assert decide(options, p=0.01, num_tests=23).chosen == "general"  # 0.05 / 23
    assert decide(options, p=0.002, num_tests=23).chosen == "good"


def test_when_none_qualifies_the_general_model_is_kept_and_it_is_said():
    choice = decide([GENERAL, option("greedy", 0.6, 0.5)])
    assert choice.chosen == "general"
    assert not choice.any_merge
    assert "The general model is kept" in choice.reason
    assert "greedy" in choice.reason


def test_a_merge_without_a_gain_is_not_chosen():
    assert decide([GENERAL, option("worse", 0.85, -0.1)]).chosen == "general"


def test_holms_steps():
    # 0.05 / 3, then / 2, then / 1: the second fails at 0.03 > 0.025, and so does what follows.
    assert holm([0.01, 0.03, 0.04], 0.05) == [True, False, False]
    assert holm([0.04, 0.01, 0.02], 0.05) == [True, True, True]
    assert holm([], 0.05) == []


def test_the_front_and_its_knee():
    places = {"a": (0.0, 1.0), "b": (0.1, 0.3), "c": (0.5, 0.25), "d": (1.0, 0.0), "e": (0.6, 0.6)}
    options = [Candidate(n, x, y, 0.0, 0.5) for n, (x, y) in places.items()]
    front = pareto_front(options)
    assert front == ["a", "b", "c", "d"]
    assert knee(options, front) == "b"
    assert knee(options, front[:2]) is None


@pytest.mark.parametrize("order", [1, -1])
def test_equal_points_stand_once_on_the_front(order: int):
    twins = [Candidate(n, 0.5, 0.5, 0.0, d) for n, d in (("far", 0.9), ("near", 0.2))]
    assert pareto_front(twins[::order]) == ["near"]
