"""The learning rate at the places that matter."""

from __future__ import annotations

import itertools

import pytest

from toolkit.train.config import ScheduleSection
from toolkit.train.schedule import learning_rate

SCHEDULE = ScheduleSection(peak_lr=2e-4, warmup_fraction=0.02, final_lr_fraction=0.1)


def test_it_rises_to_the_peak_and_falls_to_the_end():
    rates = [learning_rate(step, 200, SCHEDULE) for step in range(200)]
    assert rates[:4] == pytest.approx([0.5e-4, 1e-4, 1.5e-4, 2e-4])
    assert max(rates) == pytest.approx(2e-4)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    # halfway down the cosine: the mean of peak and end
    assert rates[4 + 98] == pytest.approx((2e-4 + 0.2e-4) / 2)
    assert rates[-1] == pytest.approx(0.2e-4, rel=0.01)


def test_a_run_of_one_step_learns():
    assert learning_rate(0, 1, SCHEDULE) == pytest.approx(2e-4)


def rates(num_steps: int = 100, **values: object) -> list[float]:
    section = ScheduleSection.model_validate({"peak_lr": 1.0, "warmup_fraction": 0.1, **values})
    return [learning_rate(step, num_steps, section) for step in range(num_steps)]


def test_wsd_holds_and_then_falls_as_one_minus_sqrt():
    found = rates(kind="wsd", decay_fraction=0.2, final_lr_fraction=0.0)
    assert found[9:81] == [1.0] * 72
    assert found[85] == pytest.approx(1 - (5 / 20) ** 0.5)
    assert found[99] == pytest.approx(1 - (19 / 20) ** 0.5)


def test_infinite_cools_down_to_a_constant():
    found = rates(kind="infinite", cooldown_fraction=0.3, constant_lr_fraction=0.4)
    assert found[9] == 1.0
    assert found[25] == pytest.approx(0.7)  # half of the way down the cosine
    assert found[40:] == pytest.approx([0.4] * 60)


def test_minimum_begins_at_its_rate_and_falls():
    found = rates(kind="minimum", final_lr_fraction=0.01)
    assert found[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(found))
    assert found[-1] == pytest.approx(0.01, rel=0.05)


def test_constant_stays():
    assert rates(kind="constant")[10:] == [1.0] * 90


def test_fractions_must_fit():
    with pytest.raises(ValueError, match="must not exceed 1 together"):
        ScheduleSection(kind="wsd", warmup_fraction=0.5, decay_fraction=0.6)
