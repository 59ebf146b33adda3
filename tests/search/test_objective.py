"""Several sets: figures on part of the items, bounds, and when a candidate is out."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from tests.helpers.fakes import made_up_set
from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.config import RaceSection
from toolkit.search.objective import Objective


def of(*sets: EvaluationSet, **changes: Any) -> Objective:
    values: dict[str, Any] = {
        "weights": {},
        "tolerances": {},
        "tolerance": 0.05,
        "confidence": 0.95,
        "race": RaceSection(looks=(0.25, 0.5)),
        "seed": 3,
    }
    return Objective(sets, **{**values, **changes})


def losses(objective: Objective, share: float, look: int = -1) -> dict[str, Any]:
    return {
        name: np.array(raced.items.score(share, raced.order[: raced.cuts[look]].tolist()))
        for name, raced in objective.sets.items()
    }


DOMAIN, GENERAL = made_up_set("filings", "domain"), made_up_set("news", "general", seed=1)


def test_blocks_cover_all_items_once_and_do_not_depend_on_other_sets():
    objective = of(DOMAIN, GENERAL)
    raced = objective.sets["filings"]
    assert raced.cuts == (10, 20, 40)
    assert sorted(raced.order) == list(range(40))
    alone = of(DOMAIN, made_up_set("other", "general", 20))
    assert (alone.sets["filings"].order == raced.order).all()
    assert (of(DOMAIN, GENERAL, seed=4).sets["filings"].order != raced.order).any()


def test_looks_at_too_few_documents_are_passed_over():
    few = made_up_set("few", "domain", 16)
    assert of(few, GENERAL).looks == (0.5,)  # a quarter of 16 is 4
    assert of(DOMAIN, GENERAL).looks == (0.25, 0.5)


def test_groups_stay_together():
    grouped = EvaluationSet(
        "g", "domain", "loss", list("abcdef"), list("xyxyzz"), [1.0] * 6, [1] * 6, "", list
    )
    raced = of(grouped, GENERAL).sets["g"]
    groups = [grouped.groups[index] for index in raced.order]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == 2
    assert raced.groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_watched_sets_wait_for_the_end():
    objective = of(DOMAIN, GENERAL, made_up_set("chat", "watch", 8))
    assert objective.sets["chat"].cuts == (0, 0, 8)


def test_a_part_and_the_general_model_tell_the_whole():
    objective = of(DOMAIN, GENERAL)
    start, whole = losses(objective, 0.0), losses(objective, 0.6)
    part = losses(objective, 0.6, look=0)
    estimate = objective.estimates(part, [start])["filings"]
    truth = objective.estimates(whole, [start])["filings"]
    own = float(np.mean(part["filings"]))
    assert abs(estimate - truth) < abs(own - truth) / 2
    assert objective.tokens(part) == 2 * 10 * 10
    part["news"] = part["news"][:0]  # dropped for the domain
    near = objective.estimates(part, [start, losses(objective, 0.61)])["filings"]
    assert abs(near - truth) < abs(estimate - truth)
    assert np.isnan(objective.general(objective.estimates(part, [start])))
    assert objective.general_loss_bound(part, start) == np.inf


def test_domain_sets_are_weighted():
    second = made_up_set("reports", "domain", best=0.4, seed=5)
    figures = {"filings": 1.0, "reports": 2.0, "news": 9.0}
    assert of(DOMAIN, second, GENERAL).domain(figures) == 1.5
    assert of(DOMAIN, second, GENERAL, weights={"reports": 3.0}).domain(figures) == 1.75


def test_a_general_set_in_another_unit_is_not_mixed_into_the_figure():
    answers = dataclasses.replace(made_up_set("answers", "general"), unit="nats", tolerance=0.001)
    objective = of(DOMAIN, GENERAL, answers)
    assert objective.general({"filings": 1.0, "news": 2.0, "answers": 9.0}) == 2.0
    assert objective.tolerances == {"news": 0.05, "answers": 0.001}
    start, moved = losses(objective, 0.0), losses(objective, 1.0)
    assert objective.general_loss_bound(moved, start) > 0.05  # but it holds back
    del moved["news"]  # who was dropped for the answers alone is known to lose too much
    assert 0.05 < objective.general_loss_bound(moved, start) < np.inf


def test_each_general_set_must_hold_by_itself():
    tight = made_up_set("chat", "general", seed=2)
    objective = of(DOMAIN, GENERAL, tight, tolerances={"chat": 0.001})
    start, moved = losses(objective, 0.0), losses(objective, 1.0)  # both lose 0.02
    assert objective.general_loss_bound(moved, start) == pytest.approx(
        0.02 - 0.001 + 0.05, abs=0.01
    )
    assert of(DOMAIN, GENERAL).general_loss_bound(moved, start) < 0.05


def test_what_a_sampler_is_told_is_what_full_scoring_would_say():
    objective = of(DOMAIN, GENERAL, tolerance=0.01)
    start = losses(objective, 0.0)
    part, whole = (
        objective.beyond_tolerance(losses(objective, 1.0, look=look), start) for look in (0, -1)
    )
    bound = objective.general_loss_bound(losses(objective, 1.0), start)
    assert whole == pytest.approx(bound - 0.01)  # both lose 0.02
    assert part == pytest.approx(whole, abs=0.001)
    assert objective.beyond_tolerance({"news": np.zeros(0)}, start) == 0.0


def test_out_on_either_side():
    objective = of(DOMAIN, GENERAL)
    start, best = losses(objective, 0.0), losses(objective, 0.8)
    assert objective.is_behind(losses(objective, 0.1, look=0), best)
    assert not objective.is_behind(losses(objective, 0.8, look=0), start)
    assert not objective.loses_too_much("news", losses(objective, 0.8, look=0), start)
    strict = of(DOMAIN, GENERAL, tolerance=0.001)
    assert strict.loses_too_much("news", losses(objective, 0.8, look=0), start)
    without = of(DOMAIN, GENERAL, race=RaceSection(enabled=False))
    assert not without.is_behind(losses(objective, 0.1, look=0), best)


def test_wrong_names_and_missing_roles():
    with pytest.raises(ConfigError, match="no domain set of this name; did you mean filings"):
        of(DOMAIN, GENERAL, weights={"filing": 1.0})
    with pytest.raises(ConfigError, match=r"select\.tolerances\.filings: there is no general set"):
        of(DOMAIN, GENERAL, tolerances={"filings": 1.0})
    with pytest.raises(EvaluationError, match="hold no general set"):
        of(DOMAIN)
