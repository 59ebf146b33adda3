"""One candidate's race: which sets are asked first, and what is scored of who is out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.helpers.fakes import made_up_set
from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.config import RaceSection
from toolkit.search.objective import Objective
from toolkit.search.race import best_of, rivals_among, run_race

FILINGS = made_up_set("filings", "domain")
NEWS = dataclasses.replace(made_up_set("news", "general", seed=1), costs=[11] * 40)
ANSWERS = dataclasses.replace(
    made_up_set("answers", "general", seed=2), costs=[2] * 40, unit="nats", tolerance=0.005
)


def of(*sets: EvaluationSet, tolerance: float = 0.05, race: RaceSection | None = None) -> Objective:
    return Objective(
        sets,
        weights={},
        tolerances={},
        tolerance=tolerance,
        confidence=0.95,
        race=race or RaceSection(looks=(0.2, 0.4, 0.7)),
        seed=3,
    )


def all_of(objective: Objective, share: float) -> dict[str, Any]:
    return {
        name: np.array(raced.items.score(share, raced.order.tolist()))
        for name, raced in objective.sets.items()
    }


def contest(
    objective: Objective, share: float, points: tuple[float, ...] = (0.4,), **changes: Any
) -> tuple[bool, dict[str, Any], list[dict[str, int]]]:
    whole, losses, asked = all_of(objective, share), {}, []

    def score(counts: Mapping[str, int]) -> None:
        asked.append(dict(counts))
        for name, count in counts.items():
            losses[name] = whole[name][: max(count, len(losses.get(name, ())))]

    rivals = rivals_among({p: all_of(objective, p) for p in (0.0, *points, 1.0)}, objective)
    values = {"may_drop": True, "is_shown": False, **changes}
    return run_race(objective, losses, score, lambda: rivals, **values), losses, asked


def test_a_set_that_the_specialist_loses_on_is_asked_first():
    # Its loss of 0.02 is beyond 0.005; at 0.9 it is 0.016. For the chart a few filings are scored.
    stayed, losses, asked = contest(of(FILINGS, NEWS, ANSWERS), 0.9)
    assert not stayed
    assert asked == [{"answers": 8}, {"filings": 2}]
    assert {name: len(values) for name, values in losses.items()} == {"answers": 8, "filings": 2}


def test_a_point_of_the_sweep_has_a_general_figure_too():
    _, losses, asked = contest(of(FILINGS, NEWS, ANSWERS), 0.9, is_shown=True)
    assert asked[1:] == [{"filings": 4}, {"news": 4}]
    assert len(losses["news"]) == 4


def test_what_gains_less_than_the_best_plain_mean_is_out():
    stayed, _, asked = contest(of(FILINGS, NEWS), 0.1, (0.3, 0.7))
    assert not stayed
    assert asked == [{"news": 8}, {"filings": 8}]


def test_a_point_of_the_sweep_is_not_dropped_for_its_domain():
    stayed, losses, _ = contest(of(FILINGS, NEWS), 0.1, (0.3, 0.7), is_shown=True)
    assert stayed
    assert all(len(values) == 40 for values in losses.values())


def test_what_gains_no_more_than_the_plain_mean_of_the_same_general_loss_is_out():
    # At 0.75 the domain is better than at 0.5, the best so far, by going farther, and by no more.
    noisy = [dataclasses.replace(FILINGS), dataclasses.replace(NEWS)]
    objective = of(*noisy)
    stayed, _, _ = contest(objective, 0.75, (0.25, 0.5))
    assert not stayed


def test_what_does_better_than_the_sweep_stays():
    objective = of(FILINGS, NEWS)
    whole = all_of(objective, 0.6)
    whole["filings"] = whole["filings"] - 0.02
    losses: dict[str, Any] = {}

    def score(counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            losses[name] = whole[name][: max(count, len(losses.get(name, ())))]

    rivals = rivals_among({p: all_of(objective, p) for p in (0.0, 0.3, 0.7, 1.0)}, objective)
    assert run_race(objective, losses, score, lambda: rivals, may_drop=True, is_shown=False)


def test_a_cheap_set_is_asked_in_full_before_the_domain():
    # All 40 answers cost no more than the first 8 filings.
    objective = of(FILINGS, dataclasses.replace(ANSWERS, tolerance=0.015))
    _, _, asked = contest(objective, 0.85)  # loses 0.0145: too near to be seen by 8 answers
    assert asked[:2] == [{"answers": 8}, {"answers": 40}]


def test_who_may_not_be_dropped_is_scored_in_full():
    stayed, losses, _ = contest(of(FILINGS, NEWS, ANSWERS), 0.9, may_drop=False)
    assert stayed
    assert all(len(values) == 40 for values in losses.values())


def test_what_costs_little_is_soon_known_in_full():
    objective = of(FILINGS, NEWS, ANSWERS)
    # 40 answers cost 80 tokens, as much as the 8 filings of the first look; known from the second.
    assert objective.sets["answers"].cuts == (8, 40, 40, 40)
    assert objective.sets["news"].cuts == (8, 16, 28, 40)  # 440 tokens


def test_the_best_gains_and_stays_within_the_tolerance():
    objective = of(FILINGS, NEWS, ANSWERS)
    start, *others = (all_of(objective, share) for share in (0.0, 0.3, 0.4, 0.9))
    assert best_of(others, start, objective) is others[1]
    assert best_of([all_of(objective, -0.5)], start, objective) is start


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_documents_tell_the_figure_of_all(share: float, count: int):
    objective = of(FILINGS, NEWS, ANSWERS)
    start, end, whole = (all_of(objective, one) for one in (0.0, 1.0, share))
    guide = {name: end[name] - start[name] for name in end}
    part = {name: values[:count] for name, values in whole.items()}
    found = objective.estimates(part, [start], guide)
    assert found == pytest.approx(
        objective.estimates(whole, [start]), abs=1e-9 if count > 3 else 5e-4
    )
