"""Methods against the plain mean of the same general loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.fakes import made_up_set, share_of, unraced_objective
from toolkit.search.objective import Objective
from toolkit.search.plain_sweep import Match, PlainSweep
from toolkit.search.space import Candidate, sweep_point
from toolkit.search.worker import Outcome
from toolkit.select.rivals import Finalist, confirm, shortlist

TOLERANCE = 0.015


@pytest.fixture
def objective() -> Objective:
    return unraced_objective(
        [made_up_set("filings", "domain"), made_up_set("news", "general", seed=1)],
        tolerance=TOLERANCE,
        seed=3,
    )


def losses_of(objective: Objective, share: float, better: float = 0.0) -> dict[str, Any]:
    found = {
        name: np.array(raced.items.score(share, raced.order.tolist()))
        for name, raced in objective.sets.items()
    }
    found["filings"] = found["filings"] - better
    return found


def merge_of(objective: Objective, name: str, share: float, better: float) -> Outcome:
    plain = sweep_point(share)
    candidate = Candidate(name, plain.config)
    assert share_of(plain.config) == share
    return Outcome(
        candidate, "complete", losses_of(objective, share, better), share, 0, 0.0, 0.0, 9
    )


def confirmed(objective: Objective, match: Match, losses: Any, plain: Any, tests: int = 1) -> Any:
    finalist = Finalist(merge_of(objective, "m", 0.5, 0.0), match, -0.01, 0.1)
    return confirm(finalist, "plain", objective, losses, plain, losses_of(objective, 0.0), tests)


def test_the_lead_is_at_the_same_general_loss(objective: Objective):
    # The merge is the plain mean of 0.6, set beside that of 0.5: on the domain it is better by
    # 0.1 ((0.25 - 0.8) - (0.36 - 0.96)) = 0.005, and loses 0.02 (0.36 - 0.25) = 0.0022 more. Along
    # a sweep that gains 2.5 for each unit lost that is worth 0.0055.
    match = Match(0.5, "news", -2.5)
    found = confirmed(objective, match, losses_of(objective, 0.6), losses_of(objective, 0.5))
    assert found.lead.estimate == pytest.approx(-0.005 + 2.5 * 0.0022, abs=2e-4)
    assert not found.leads
    # Without the correction it would seem to lead.
    free = confirmed(
        objective, Match(0.5, None, 0.0), losses_of(objective, 0.6), losses_of(objective, 0.5)
    )
    assert free.leads


def test_all_three_must_hold(objective: Objective):
    match = Match(0.5, "news", -2.5)
    good = losses_of(objective, 0.5, better=0.02)
    plain = losses_of(objective, 0.5)
    found = confirmed(objective, match, good, plain)
    assert found.is_confirmed
    assert found.lead.high < -0.015
    lossy = {**good, "news": good["news"] + 0.02}
    found = confirmed(objective, Match(0.5, None, 0.0), lossy, plain)
    assert (found.is_within, found.gains, found.leads) == (False, True, True)
    assert not found.is_confirmed
    useless = {**good, "filings": losses_of(objective, 0.0)["filings"] + 0.001}
    found = confirmed(objective, match, useless, {**plain, "filings": useless["filings"] + 0.01})
    assert (found.is_within, found.gains, found.leads) == (True, False, True)


def test_intervals_widen_with_the_number_of_finalists(objective: Objective):
    noisy = losses_of(objective, 0.5)
    noisy["filings"] = noisy["filings"] + np.random.default_rng(0).normal(-0.01, 0.02, 40)
    match, plain = Match(0.5, "news", -2.5), losses_of(objective, 0.5)
    one, three = (confirmed(objective, match, noisy, plain, tests) for tests in (1, 3))
    assert one.lead.estimate == three.lead.estimate
    assert three.lead.high > one.lead.high


def test_only_what_promises_more_than_the_sweep_is_confirmed(objective: Objective):
    points = {alpha: losses_of(objective, alpha) for alpha in (0.0, 0.3, 0.6, 1.0)}
    sweep = PlainSweep(objective, points)
    merges = [
        merge_of(objective, "same", 0.7, -0.0005),
        merge_of(objective, "better", 0.7, 0.01),
        merge_of(objective, "as good, and near it", 0.69, 0.009),
        merge_of(objective, "better, and loses less", 0.6, 0.01),
        merge_of(objective, "loses too much", 0.95, 0.01),
        merge_of(objective, "less than the best plain mean", 0.2, 0.01),
    ]
    at_least = objective.domain_difference(points[0.6], points[0.0]).estimate
    few = shortlist(merges, sweep, objective, points[0.0], at_least, {"news": 40}, 3)
    assert [f.outcome.candidate.name for f in few] == ["better", "better, and loses less"]
