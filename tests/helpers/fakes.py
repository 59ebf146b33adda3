"""Sets and a bench without a network: a candidate's loss is a known function of its weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.evaluate.config import EvaluationRole
from toolkit.evaluate.sets import EvaluationSet
from toolkit.merge.config import MergeConfig
from toolkit.search.config import RaceSection, SearchSection
from toolkit.search.objective import Objective
from toolkit.search.queue import SearchPlan
from toolkit.search.space import SPECIALIST, MergeSpace, read_space


class FakeBench:
    """`model` is the specialist's share alone."""

    def __init__(self, bad: float | None = None) -> None:
        self.merge_seconds = 0.0
        self.model = math.nan
        self.merged: list[float] = []
        self.bad = bad

    def apply(self, config: MergeConfig) -> None:
        self.merge_seconds += 0.001
        self.model = share_of(config)
        self.merged.append(self.model)

    def score(self, _candidate: Any, items: Any, rows: Any, _together: Any = ()) -> list[float]:
        return list(items.score(self.model, rows))

    def distance(self) -> float:
        return abs(self.model)


def share_of(config: MergeConfig) -> float:
    for item in config.models or ():
        if item.model == SPECIALIST:
            return float((item.parameters or {}).get("weight", (config.parameters or {}).get("t")))
    raise AssertionError


def made_up_set(
    name: str,
    role: EvaluationRole,
    count: int = 40,
    *,
    best: float = 0.8,
    noise: float = 0.001,
    seed: int = 0,
    scored: list[int] | None = None,
) -> EvaluationSet:
    """Domain loss falls to `best` and rises again, general loss rises all the way."""
    generator = np.random.default_rng(seed)
    level = 0.8 + 0.2 * generator.random(count)
    tilt = generator.normal(0.0, noise, count)

    def score(model: Any, rows: Sequence[int]) -> list[float]:
        if scored is not None:
            scored.extend(rows)
        share = float(model)
        change = (
            0.1 * ((share - best) ** 2 - best**2) if role == "domain" else 0.02 * max(share, 0) ** 2
        )
        return [float(level[row] + change + tilt[row] * share) for row in rows]

    ids = [f"{name}/{row}" for row in range(count)]
    return EvaluationSet(
        name, role, "loss", ids, ids, [1.0] * count, [10] * count, f"{name}{count}{seed}", score
    )


def space(method: str = "linear") -> MergeSpace:
    weights = {"general": {"search": "1 - alpha"}, "specialist": {"search": [0.1, 1.2]}}
    weights["specialist"] = {"search": {"name": "alpha", "range": [0.1, 1.2]}}
    models = [{"model": n, "parameters": {"weight": w}} for n, w in weights.items()]
    return read_space(method, {"merge_method": method, "models": models}, f"{method}.yaml")


def plan(
    sets: Sequence[EvaluationSet] | None = None,
    *,
    spaces: list[MergeSpace] | None = None,
    tolerance: float = 0.05,
    race: RaceSection | None = None,
    **section: Any,
) -> SearchPlan:
    values: dict[str, Any] = {"num_trials": 10, "sweep": (0.9, 0.6, 0.3), **section}
    wanted = SearchSection(**values, race=race or RaceSection())
    objective = Objective(
        sets or [made_up_set("filings", "domain"), made_up_set("news", "general", seed=1)],
        weights=wanted.weights,
        tolerances={},
        tolerance=tolerance,
        confidence=0.95,
        race=wanted.race,
        seed=7,
        num_candidates=wanted.num_trials,
    )
    return SearchPlan([space()] if spaces is None else spaces, wanted, objective, 7)


def unraced_objective(
    sets: Sequence[EvaluationSet], *, tolerance: float = 0.01, seed: int = 0
) -> Objective:
    """Sets that are scored in full, at equal weights."""
    return Objective(
        sets,
        weights={},
        tolerances={},
        tolerance=tolerance,
        confidence=0.95,
        race=RaceSection(enabled=False),
        seed=seed,
    )
