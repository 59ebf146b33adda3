"""The choice by constraint."""

from __future__ import annotations

from toolkit.select import Candidate, SelectSection, choose

SECTION = SelectSection(general_tolerance=0.01)
GENERAL = Candidate("general", 0.80, 1.00, 0.0, 0.0)


def option(name: str, domain: float, bound: float, distance: float = 0.5) -> Candidate:
    return Candidate(name, domain, 1.0, bound, distance)


def test_the_largest_gain_within_tolerance_wins():
    options = [GENERAL, option("safe", 0.75, 0.002), option("best", 0.70, 0.009)]
    choice = choose([*options, option("greedy", 0.65, 0.011)], "general", SECTION)
    assert choice.chosen == "best"
    assert choice.qualified == ("general", "safe", "best")
    assert choice.any_merge


def test_it_is_the_bound_that_must_stay_within_not_the_estimate():
    lucky = Candidate("lucky", 0.6, 0.99, 0.02, 0.5)  # better on average, but not surely
    assert choose([GENERAL, lucky], "general", SECTION).chosen == "general"


def test_of_equals_the_nearest_to_the_general_model():
    options = [GENERAL, option("far", 0.7, 0.0, 0.9), option("near", 0.7, 0.0, 0.3)]
    assert choose(options, "general", SECTION).chosen == "near"
    assert choose(options[::-1], "general", SECTION).chosen == "near"


def test_when_none_qualifies_the_general_model_is_kept_and_it_is_said():
    choice = choose([GENERAL, option("greedy", 0.6, 0.5)], "general", SECTION)
    assert choice.chosen == "general"
    assert not choice.any_merge
    assert "The general model is kept" in choice.reason
    assert "greedy" in choice.reason


def test_a_merge_without_a_gain_is_not_chosen():
    assert choose([GENERAL, option("worse", 0.85, -0.1)], "general", SECTION).chosen == "general"
