"""The choice in simulated studies through the real search and decision, with wide margins.

`make bench-choice` holds them to the figures; here what would be a blunder is caught.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.worlds import WORLDS, StudyFigures, decide_study, run_study


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
    """Not often: a third of the documents must show it, and the sampler must come to its place."""
    assert sum(s.beats for s in studies("ties 8 % better", 10)) >= 2


def test_what_is_chosen_is_known_in_full_and_every_step_is_told():
    study = decide_study(WORLDS["finance, own sizes"], 7)  # one of its sets is watched only
    decision = study.choice.decision
    assert decision.choice.any_merge
    assert decision.chosen.status == "complete"
    assert study.search.plan.objective.is_whole(decision.chosen.losses)
    names = {row.name for row in decision.rows}
    assert {step.name for step in decision.steps} <= names  # the halvings among them
    passed = [step for step in decision.steps if step.is_within]
    assert {step.name for step in passed} <= set(decision.choice.qualified)
    assert decision.choice.chosen in decision.choice.reason
    nearest = min((s for s in decision.steps if not s.is_within), key=lambda s: s.alpha)
    told = f"{nearest.name} is not: retention may lose {nearest.tests[-1].bound:.3g}"
    assert told in decision.choice.reason


@pytest.mark.parametrize("seed", [3, 4])
def test_the_same_study_twice(seed: int):
    one, two = (run_study(WORLDS["14 documents"], seed) for _ in range(2))
    assert one == two
