"""The plain sweep between its points, and where it loses as much as a merge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.fakes import made_up_set
from toolkit.search.config import RaceSection
from toolkit.search.objective import Objective
from toolkit.search.plain_sweep import PlainSweep

ALPHAS = (0.0, 0.3, 0.6, 1.0)


def objective_of(*names: str) -> Objective:
    sets = [made_up_set("filings", "domain")]
    sets += [made_up_set(name, "general", seed=n + 1) for n, name in enumerate(names)]
    return Objective(
        sets,
        weights={},
        tolerances={},
        tolerance=0.05,
        confidence=0.95,
        race=RaceSection(),
        seed=3,
    )


def losses_of(objective: Objective, share: float) -> dict[str, Any]:
    return {
        name: np.array(raced.items.score(share, raced.order.tolist()))
        for name, raced in objective.sets.items()
    }


@pytest.fixture
def objective() -> Objective:
    return objective_of("news")


@pytest.fixture
def sweep(objective: Objective) -> PlainSweep:
    return PlainSweep(objective, {alpha: losses_of(objective, alpha) for alpha in ALPHAS})


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.44, 0.8, 1.0])
def test_between_its_points_losses_are_those_of_the_plain_mean(
    objective: Objective, sweep: PlainSweep, alpha: float
):
    # These worlds are parabolas in α, which a spline through four points repeats.
    found, truth = sweep.losses_at(alpha), losses_of(objective, alpha)
    for name in truth:
        assert found[name] == pytest.approx(truth[name], abs=1e-9)


def test_a_merge_is_matched_where_the_sweep_loses_as_much(objective: Objective, sweep: PlainSweep):
    assert sweep.lossy_sets == ("news",)
    losses = losses_of(objective, 0.44)
    match = sweep.match({"news": losses["news"]})
    assert match is not None
    assert (match.alpha, match.bound_set) == (pytest.approx(0.44, abs=0.011), "news")
    # Domain 0.1 (α² - 1.6 α), news 0.02 α²: slope 0.1 (2α - 1.6) / 0.04 α.
    assert match.slope == pytest.approx(0.1 * (0.88 - 1.6) / (0.04 * 0.44), rel=0.1)
    assert sweep.match({"filings": losses["filings"]}) is None  # what it loses is not known yet


def test_a_merge_that_loses_less_than_nothing_is_matched_with_the_general_model(
    objective: Objective, sweep: PlainSweep
):
    losses = losses_of(objective, 0.0)
    match = sweep.match({"news": losses["news"] - 0.1})
    assert match is not None
    assert match.alpha == 0.0


def test_of_several_sets_the_one_that_lets_the_sweep_go_farthest_decides():
    objective = objective_of("news", "code")
    sweep = PlainSweep(objective, {alpha: losses_of(objective, alpha) for alpha in ALPHAS})
    near, far = losses_of(objective, 0.2), losses_of(objective, 0.7)
    match = sweep.match({"news": near["news"], "code": far["code"]})
    assert match is not None
    assert (match.alpha, match.bound_set) == (pytest.approx(0.7, abs=0.011), "code")


def test_where_the_specialist_loses_nothing_the_best_plain_mean_is_meant(objective: Objective):
    points = {alpha: losses_of(objective, alpha) for alpha in ALPHAS}
    for losses in points.values():
        losses["news"] = points[0.0]["news"]
    match = PlainSweep(objective, points).match({})
    assert match is not None
    assert (match.alpha, match.bound_set, match.slope) == (pytest.approx(0.8, abs=0.011), None, 0.0)
