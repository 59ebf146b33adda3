"""The learning rate at the places that matter."""

from __future__ import annotations

import itertools

import pytest

from toolkit.train.config import ScheduleSection
from toolkit.train.schedule import learning_rate

SCHEDULE = ScheduleSection(peak_lr=2e-4, rewarm_fraction=0.02, final_fraction=0.1)


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
