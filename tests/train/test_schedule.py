"""The learning rate at the places that matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from toolkit.train.config import AnnealSection, ScheduleSection
from toolkit.train.schedule import anneal_rates, decay_weights, learning_rate

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


@pytest.mark.parametrize("shape", ["sqrt", "linear", "cosine"])
def test_a_mean_of_states_is_the_decayed_run_where_gradients_are_given(shape: str):
    """A linear loss has the same gradients wherever the parameters are."""
    gradients = np.random.default_rng(1).normal(size=(20, 3))
    section = AnnealSection.model_validate({"shape": shape, "final_lr_fraction": 0.1})
    states = np.concatenate([np.zeros((1, 3)), -0.5 * gradients.cumsum(axis=0)])
    steps = list(range(8, 21))  # a state after each of the last steps
    weights = decay_weights(steps, section)
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= 0.0
    rates = anneal_rates(8, 12, 0.5, section)
    decayed = states[8] - sum(rates[step] * gradients[step] for step in range(8, 20))
    assert weights @ states[steps] == pytest.approx(decayed)


def test_states_far_apart_share_the_mean_rate_of_their_steps():
    # Steps 0 to 3 at 0.8, 0.6, 0.4, 0.2: changes of two steps count 0.7 and 0.3.
    weights = decay_weights([0, 2, 4], AnnealSection(shape="linear"))
    assert weights == pytest.approx([0.3, 0.4, 0.3])
