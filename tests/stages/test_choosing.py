"""The merge stage: what is said of sets that cannot see their tolerance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.search.fakes import made_up_set
from toolkit.search.config import RaceSection
from toolkit.search.objective import Objective
from toolkit.stages.choosing import _too_small


def notes(*, tolerance: float, scatter: float, own: float | None = None) -> list[str]:
    news = replace(made_up_set("news", "general", 10), tolerance=own)
    objective = Objective(
        [made_up_set("filings", "domain", 10), news],
        weights={},
        tolerances={},
        tolerance=tolerance,
        confidence=0.95,
        race=RaceSection(enabled=False),
        seed=0,
    )
    start: dict[str, Any] = {"filings": np.ones(10), "news": np.ones(10)}
    moved = {**start, "news": start["news"] + scatter * (-1.0) ** np.arange(10)}
    return _too_small(objective, moved, start, 0.95)


def test_a_set_too_small_is_said_with_the_number_needed():
    (note,) = notes(tolerance=0.01, scatter=0.1)
    assert note.startswith("news: 10 groups see a loss of")
    assert "groups are needed" in note
    assert notes(tolerance=0.01, scatter=0.001) == []
    assert notes(tolerance=0.01, scatter=0.1, own=1.0) == []
