"""Figures of candidates, the sweep, and what of the specialist a merge keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.fakes import FakeBench, made_up_set, plan
from toolkit.evaluate.sets import BITS, EvaluationSet
from toolkit.search.config import RaceSection
from toolkit.search.run import run_search
from toolkit.select.bound import gain_bound, loss_bound
from toolkit.select.candidates import (
    arranged,
    by_item,
    candidate_result,
    candidate_rows,
    cannot_be_told_apart,
    merged_parts,
    sweep_points_of,
)
from toolkit.select.test_figures import ScoredTestSets, document_figures, final_figures


def texts(name: str, role: Any, groups: str = "ab") -> EvaluationSet:
    ids = [f"{name}{n}" for n in range(len(groups))]
    sizes = [10.0] * len(groups)
    return EvaluationSet(
        name, role, "bits per byte", ids, list(groups), sizes, [5] * len(groups), "", list, BITS
    )


SETS = [texts("filings", "domain"), texts("news", "general")]


def nats(domain: float, general: float) -> dict[str, list[float]]:
    """Every document at the same bits per byte, so that resampling changes nothing."""
    return {"filings": [10 * domain / BITS] * 2, "news": [10 * general / BITS] * 2}


def test_worked_example():
    # Domain: 0.8 -> 0.7, the merge 0.72: 80 % kept. General: 1.0 -> 1.1, the merge 1.02: 80 % back.
    losses = {"general": nats(0.8, 1.0), "specialist": nats(0.7, 1.1), "merge": nats(0.72, 1.02)}
    figures = final_figures(ScoredTestSets(SETS, {}, losses))
    merge = figures.models.merge
    assert merge.domain.estimate == pytest.approx(0.72)
    assert merge.general_change.estimate == pytest.approx(0.02)
    assert merge.sets["filings"].high == pytest.approx(0.72)
    assert merge.set_changes["news"].low == pytest.approx(0.02)
    for share in (figures.gain_kept, figures.loss_recovered, figures.sets_recovered["news"]):
        assert share is not None
        assert share.estimate == pytest.approx(0.8)
        assert share.low == pytest.approx(0.8)
    assert set(figures.sets_recovered) == {"news"}
    rows = document_figures(losses, SETS)
    assert [row.id for row in rows] == ["filings0", "filings1", "news0", "news1"]
    assert rows[2].specialist == pytest.approx(1.1)


def test_nothing_gained_and_nothing_lost_are_said():
    losses = {"general": nats(0.8, 1.0), "specialist": nats(0.9, 0.9), "merge": nats(0.8, 1.0)}
    figures = final_figures(ScoredTestSets(SETS, {}, losses))
    assert figures.gain_kept is None
    assert figures.loss_recovered is None
    assert figures.sets_recovered == {"news": None}


def test_a_share_of_what_is_not_shown_is_not_given():
    # The specialist loses 0.2 on one article and gains 0.1 on the other: no loss is shown.
    news = [10 * x / BITS for x in (1.2, 0.9)]
    losses = {
        "general": nats(0.8, 1.0),
        "specialist": {**nats(0.7, 1.0), "news": news},
        "merge": nats(0.72, 1.0),
    }
    figures = final_figures(ScoredTestSets(SETS, {}, losses))
    assert figures.models.specialist.general_change.estimate == pytest.approx(0.05)
    assert figures.loss_recovered is None
    assert figures.sets_recovered == {"news": None}
    assert figures.gain_kept is not None
    assert figures.gain_kept.estimate == pytest.approx(0.8)


def test_a_set_may_have_a_role_s_name():
    # Two general sets, one of them called so: its own figure is not the mean of both.
    sets = [texts("filings", "domain"), texts("general", "general"), texts("news", "general")]
    values = {"filings": [1.0, 1.0], "general": [2.0, 2.0], "news": [4.0, 4.0]}
    models = dict.fromkeys(("general", "specialist", "merge"), values)
    merge = final_figures(ScoredTestSets(sets, {}, models)).models.merge
    assert merge.sets["general"].estimate == pytest.approx(0.2 * BITS)
    assert merge.general.estimate == pytest.approx(0.3 * BITS)


def test_several_sets_are_weighed():
    sets = [texts("a", "domain", "xxxy"), texts("b", "domain"), texts("news", "general")]
    losses = {"a": [4.0, 4.0, 4.0, 0.0], "b": [2.0, 2.0], "news": [1.0, 1.0]}
    figures = ScoredTestSets(sets, {"b": 3.0}, {"m": losses})
    found = figures.levels(figures.names("domain")).change()
    assert found.estimate == pytest.approx(BITS * (0.3 + 3 * 0.2) / 4)


def test_few_groups_have_students_interval_and_what_they_may_hide():
    # Four documents, losses 1, 2, 3, 4 over size 10: mean 0.25, error 0.0645, t(3) = 3.182; a
    # sample of four is taken for one of three. They are not skewed, and may hide
    # g = 0.75 sqrt(6 4 3 / (2 5 7)) / sqrt(4) = 0.380: z = 1.96 becomes
    # 1.96 + g (2 z² + 1) / 6 + 5 g² z (4 z² - 1) / 72 = 2.795, 1.426 times as much.
    sets = [texts("a", "domain", "wxyz"), texts("news", "general", "wxyz")]
    losses = {"m": {"a": [1.0, 2.0, 3.0, 4.0], "news": [1.0] * 4}}
    interval = ScoredTestSets(sets, {}, losses).levels(["a"]).change().interval()
    assert interval.estimate == pytest.approx(0.25 * BITS)
    wide = 1.4262 * 3.1824 * 0.06455 * (4 / 3) ** 0.5
    assert interval.high == pytest.approx((0.25 + wide) * BITS, rel=1e-3)


@pytest.fixture
def found(tmp_path: Path) -> Any:
    wanted = plan()
    return wanted.objective, run_search(wanted, tmp_path / "j", "t", {}, FakeBench())


def test_rows_compare_with_the_general_model(found: Any):
    objective, outcomes = found
    rows = {row.name: row for row in candidate_rows(outcomes, objective)}
    assert rows["general"].general_loss_bound == 0.0
    assert rows["specialist"].distance == 1.0
    assert rows["linear alpha=0.6"].distance == pytest.approx(0.6)
    assert 0.02 < rows["specialist"].general_loss_bound < 0.022
    # A dropped candidate's figure is near what all documents would have given.
    dropped = next(row for row in rows.values() if row.outcome.status == "dropped")
    share = dropped.outcome.candidate.parameters["alpha"]
    raced = objective.sets["filings"]
    truth = np.mean(raced.items.score(share, raced.order.tolist()))
    assert dropped.domain == pytest.approx(float(truth), abs=0.001)
    result = candidate_result(dropped, qualified=False)
    assert result.status == "dropped"
    assert result.method == "linear"
    assert result.parameters == {"alpha": share}
    assert "error" not in result.model_dump()


def test_the_sweep_goes_from_model_to_model(found: Any):
    objective, outcomes = found
    points = sweep_points_of(outcomes, objective, 0.95)
    alphas = [point.alpha for point in points]
    assert alphas == sorted(alphas)
    assert {0.0, 0.3, 0.6, 0.9, 1.0} <= set(alphas)
    start = points[0].domain
    assert start.low == start.estimate == start.high  # against itself
    at = next(point for point in points if point.alpha == 0.6).domain
    assert at.low < at.estimate < at.high < start.estimate


def test_a_general_set_in_another_unit_has_a_sweep_of_its_own(tmp_path: Path):
    answers = dataclasses.replace(made_up_set("answers", "general", seed=2), unit="nats")
    sets = [made_up_set("filings", "domain"), made_up_set("news", "general", seed=1), answers]
    wanted = plan(sets, race=RaceSection(enabled=False))
    outcomes = run_search(wanted, tmp_path / "j", "t", {}, FakeBench())
    points = sweep_points_of(outcomes, wanted.objective, 0.95)
    assert all(list(point.sets) == ["answers"] for point in points)
    last = next(point for point in points if point.alpha == 1.0).sets["answers"]
    raced = wanted.objective.sets["answers"]
    losses = next(o for o in outcomes if o.candidate.name == "specialist").losses["answers"]
    assert last.estimate == pytest.approx(raced.figure(losses))
    assert last.low < last.estimate < last.high


def full(objective: Any, share: float) -> dict[str, Any]:
    return {
        name: np.array(raced.items.score(share, raced.order.tolist()))
        for name, raced in objective.sets.items()
    }


def test_the_bounds_that_decide_say_what_is_lost_and_gained():
    objective = plan(tolerance=0.015).objective
    start, fit, lossy = (full(objective, share) for share in (0.0, 0.8, 1.0))
    assert 0.01 < loss_bound(objective, "news", fit, start, 0.999) < 0.015  # loses 0.0128
    assert loss_bound(objective, "news", lossy, start, 0.9) > 0.015  # loses 0.02
    assert gain_bound(objective, fit, start, 0.999) < 0.0
    assert gain_bound(objective, start, start, 0.9) == 0.0  # gains nothing


def test_ties():
    noisy = [made_up_set("filings", "domain", noise=0.05), made_up_set("news", "general", seed=1)]
    objective = plan(noisy).objective
    losses = {"a": full(objective, 0.8), "b": full(objective, 0.79), "c": full(objective, 0.2)}
    assert cannot_be_told_apart(objective, losses["a"], losses["b"], 0.95)
    assert not cannot_be_told_apart(objective, losses["a"], losses["c"], 0.95)


def test_parts_are_put_together_by_item():
    objective = plan().objective
    losses = full(objective, 0.5)
    items = by_item(objective, losses)
    one = {"filings": dict(list(items["filings"].items())[:15])}
    rest = {"filings": dict(list(items["filings"].items())[15:]), "news": items["news"]}
    whole = arranged(objective, merged_parts(one, rest))
    assert all((whole[name] == losses[name]).all() for name in losses)
    assert list(arranged(objective, one)) == []
