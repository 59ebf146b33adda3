"""Figures of candidates, and what of the specialist a merge keeps."""

from __future__ import annotations

import math

import pytest

from toolkit.evaluate.likelihood import ItemSet
from toolkit.search.outcome import Resampler, final_figures, tuning_rows
from toolkit.search.run import Score
from toolkit.search.space import Candidate, endpoint

BIT = math.log(2)
ITEMS = ItemSet(list("abcd"), ["domain", "domain", "general", "general"], [10] * 4, [[0]] * 4)


def nats(domain: float, general: float) -> list[float]:
    """Every document at the same bits per byte, so that resampling changes nothing."""
    return [10 * BIT * value for value in (domain, domain, general, general)]


def test_worked_example():
    # Domain: 0.8 -> 0.7, the merge 0.72: 80 % kept. General: 1.0 -> 1.1, the merge 1.02: 80 % back.
    losses = {"general": nats(0.8, 1.0), "specialist": nats(0.7, 1.1), "merge": nats(0.72, 1.02)}
    figures = final_figures(losses, Resampler(ITEMS, 200, seed=0))
    assert figures["models"]["merge"]["domain"]["estimate"] == pytest.approx(0.72)
    assert figures["models"]["merge"]["general_change"]["estimate"] == pytest.approx(0.02)
    for key in ("gain_kept", "loss_recovered"):
        assert figures[key]["estimate"] == pytest.approx(0.8)
        assert figures[key]["low"] == pytest.approx(0.8)


def test_nothing_gained_and_nothing_lost_are_said():
    losses = {"general": nats(0.8, 1.0), "specialist": nats(0.9, 0.9), "merge": nats(0.8, 1.0)}
    figures = final_figures(losses, Resampler(ITEMS, 200, seed=0))
    assert figures["gain_kept"] is None
    assert figures["loss_recovered"] is None


def test_tuning_rows_compare_with_the_general_model():
    third = Candidate("third", endpoint("general").config)
    scores = [
        Score(endpoint("general"), nats(0.8, 1.0), 0.0),
        Score(endpoint("specialist"), nats(0.7, 1.1), 4.0),
        Score(third, nats(0.72, 1.02), 2.0),
    ]
    rows = tuning_rows(scores, Resampler(ITEMS, 200, seed=0), 0.95)
    assert rows[0].general_loss_bound == 0.0
    assert rows[2].general_loss_bound == pytest.approx(0.02)
    assert [row.distance for row in rows] == [0.0, 1.0, 0.5]
