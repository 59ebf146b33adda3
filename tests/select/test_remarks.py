"""What is said of sets that cannot see their tolerance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.helpers.fakes import made_up_set, unraced_objective
from toolkit.select.remarks import describe_small_sets


def notes(*, tolerance: float, scatter: float, own: float | None = None) -> list[str]:
    news = replace(made_up_set("news", "general", 10), tolerance=own)
    objective = unraced_objective([made_up_set("filings", "domain", 10), news], tolerance=tolerance)
    start: dict[str, Any] = {"filings": np.ones(10), "news": np.ones(10)}
    moved = {**start, "news": start["news"] + scatter * (-1.0) ** np.arange(10)}
    return describe_small_sets(objective, moved, start, 0.95)


def test_a_set_too_small_is_said_with_the_number_needed():
    (note,) = notes(tolerance=0.01, scatter=0.1)
    assert note.startswith("news (general): 10 items see a loss of")
    assert "items are needed" in note
    assert notes(tolerance=0.01, scatter=0.001) == []
    assert notes(tolerance=0.01, scatter=0.1, own=1.0) == []


def test_answers_are_counted_as_answers():
    few = replace(made_up_set("quiz", "general", 14), unit="error", sizes=[1.0] * 14, scale=1.0)
    sets = [made_up_set("filings", "domain", 14), few]
    objective = unraced_objective(sets, tolerance=0.01)
    start: dict[str, Any] = {"filings": np.ones(14), "quiz": np.zeros(14)}
    (note,) = describe_small_sets(objective, start, start, 0.95)
    assert "about 268 items are needed" in note  # were none of them to change
