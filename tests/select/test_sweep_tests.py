"""Plain means that are tested, and scored for it where the search did not try them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from toolkit.search.space import GENERAL, SPECIALIST, endpoint
from toolkit.search.worker import Outcome
from toolkit.select.sweep_tests import DecisionSettings, SweepTests


def test_what_was_not_tried_comes_after_all_that_was():
    # Orders of a search that was interrupted have gaps.
    outcomes = [
        Outcome(endpoint(name), "complete", {}, 1.0, 0, 0.0, 0.0, order)
        for name, order in ((GENERAL, 0), (SPECIALIST, 3))
    ]
    whole = SimpleNamespace(weights={}, tolerances={})
    losses: Any = SimpleNamespace(whole=whole, on_all=lambda *_: {})
    sweep = SweepTests(outcomes, losses, DecisionSettings((0.4, 0.6), 2, 1, 0.95))
    assert [sweep.outcome_at(alpha).order for alpha in (0.4, 0.6, 0.4, 1.0)] == [4, 5, 4, 3]
