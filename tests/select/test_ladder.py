"""Fixed-sequence decisions: which plain means are tested, and when it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from toolkit.select.ladder import LadderStep, SetTest, climb, ladder_results, passed_steps
from toolkit.select.reason import describe_step


def bounded_by(bound: Callable[[float], Mapping[str, float]]) -> Callable[[float], LadderStep]:
    """A test of made-up bounds by set; 0.1 is tolerated."""

    def test(alpha: float) -> LadderStep:
        found = []
        for name, value in bound(alpha).items():
            found.append(SetTest(name, value - 0.01, value, 0.1, "nats"))
            if value > 0.1:
                break
        return LadderStep(alpha, f"linear alpha={alpha:g}", tuple(found))

    return test


def alphas(steps: list[LadderStep]) -> list[float]:
    return [step.alpha for step in steps]


SWEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 1.0)


def test_the_safest_is_first_and_the_first_failure_ends_it():
    steps = climb(SWEEP, bounded_by(lambda a: {"news": 0.2 * a}), 0)
    assert alphas(steps) == [0.2, 0.4, 0.5, 0.6]  # 0.12 is the first beyond 0.1
    assert [step.is_within for step in steps] == [True, True, True, False]


def test_what_would_pass_beyond_a_failure_is_not_looked_at():
    # A set that is lost at 0.4 alone: without the stop 0.5 to 1.0 would be taken.
    steps = climb(SWEEP, bounded_by(lambda a: {"news": 0.3 if a == 0.4 else 0.0}), 0)
    assert alphas(steps) == [0.2, 0.4]
    assert alphas(passed_steps(steps)) == [0.2]


def test_between_the_last_that_passed_and_the_first_that_failed_it_is_halved():
    steps = climb(SWEEP, bounded_by(lambda a: {"news": 0.1 * a / 0.46}), 3)
    assert alphas(steps) == [0.2, 0.4, 0.5, 0.45, 0.475, 0.4625]
    assert alphas(passed_steps(steps)) == [0.45, 0.4, 0.2]


def test_where_the_first_fails_it_goes_on_towards_the_general_model():
    steps = climb(SWEEP, bounded_by(lambda a: {"news": a}), 2)
    assert alphas(steps) == [0.2, 0.1, 0.15]
    assert alphas(passed_steps(steps)) == [0.1]  # 0.1 is exactly what is tolerated


def test_where_nothing_fails_the_specialist_is_the_last():
    steps = climb(SWEEP, bounded_by(lambda a: {"news": -a}), 3)
    assert alphas(steps) == sorted(SWEEP)
    assert alphas(passed_steps(steps))[0] == 1.0


def test_every_set_must_hold_and_the_first_that_fails_is_named():
    sets = bounded_by(lambda a: {"news": 0.0, "answers": 0.2 * a, "code": 0.0})
    (*_, last) = climb(SWEEP, sets, 0)
    assert [test.name for test in last.tests] == ["news", "answers"]  # code was not asked
    assert not last.is_within
    (*_, row) = ladder_results([last], {})
    assert row.tests[-1].model_dump() == {
        "name": "answers",
        "loss": pytest.approx(0.11),
        "bound": pytest.approx(0.12),
        "tolerance": 0.1,
        "unit": "nats",
        "is_within": False,
    }


def test_rows_are_by_alpha_with_the_domain_of_those_looked_at():
    steps = climb((0.2, 0.6), bounded_by(lambda a: {"news": 0.2 * a}), 1)
    rows = ladder_results(steps, {"linear alpha=0.4": -0.09})
    assert [(row.alpha, row.domain_change) for row in rows] == [
        (0.2, None),
        (0.4, -0.09),
        (0.6, None),
    ]


def test_a_bound_just_beyond_is_told_with_the_digits_that_show_it():
    step = LadderStep(0.5, "x", (SetTest("news", 0.05, 0.10004, 0.1, "nats"),))
    assert describe_step(step, "general sets") == "news may lose 0.10004 nats, 0.1 is tolerated"
