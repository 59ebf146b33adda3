"""What a merge loses by way of a plain mean that was tested on all documents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers.fakes import made_up_set, unraced_objective
from toolkit.search.objective import Losses, Objective
from toolkit.select.holdout import divide
from toolkit.select.way import can_go_by_way, loss_by_way_of


class Known:
    """Losses of plain means, without a model."""

    def __init__(self) -> None:
        sets = [made_up_set("filings", "domain"), made_up_set("news", "general", seed=1, noise=0.1)]
        self.whole = unraced_objective(sets, seed=3)
        self.aside: Objective | None = unraced_objective(divide(sets, 0.34, 0).confirm, seed=3)

    def on_all(self, share: float, _names: Any) -> Losses:
        return losses_of(self.whole, share)

    def on_aside(self, share: float, _names: Any) -> Losses:
        assert self.aside is not None
        return losses_of(self.aside, share)


def losses_of(objective: Objective, share: float) -> dict[str, Any]:
    return {
        name: np.array(raced.items.score(share, raced.order.tolist()))
        for name, raced in objective.sets.items()
    }


def by_way(known: Any, merge: Losses, step: Any, general: Any) -> Any:
    return loss_by_way_of(known, "news", merge, step, general)


def test_what_equals_the_plain_mean_loses_what_that_loses_on_all_documents():
    known = Known()
    found = by_way(known, known.on_aside(0.5, []), 0.5, 0.0)
    start = known.on_all(0.0, [])
    direct = known.whole.set_change("news", known.on_all(0.5, []), start)
    assert found.estimate == pytest.approx(direct.estimate)
    assert found.error == pytest.approx(direct.error)
    assert found.num_groups == 40


def test_what_is_lost_beyond_is_that_of_the_documents_set_aside():
    known = Known()
    step = known.on_aside(0.5, [])
    chance = np.random.default_rng(0)
    beyond = 0.02 + 0.01 * chance.normal(size=len(step["news"]))
    found = by_way(known, {"news": step["news"] + beyond}, 0.5, 0.0)
    same = by_way(known, step, 0.5, 0.0)
    assert found.estimate == pytest.approx(same.estimate + beyond.mean())
    assert found.error > same.error  # what a third says of the rest is less sure


def test_answers_and_what_was_not_divided_are_asked_directly():
    known = Known()
    items = known.whole.sets["news"].items
    assert can_go_by_way(known, "news")  # type: ignore[arg-type]
    bounded = SimpleNamespace(items=SimpleNamespace(is_bounded=True))
    answers = SimpleNamespace(aside=known.aside, whole=SimpleNamespace(sets={"news": bounded}))
    assert not items.is_bounded
    assert not can_go_by_way(answers, "news")  # type: ignore[arg-type]
    known.aside = None
    assert not can_go_by_way(known, "news")  # type: ignore[arg-type]


def test_a_merge_beyond_the_tolerance_seldom_passes():
    # The merge truly loses the tolerance; what it has of its own and its pattern scatter.
    known, chance, passed, studies = Known(), np.random.default_rng(1), 0, 600
    assert known.aside is not None
    whole, aside = known.whole.sets["news"], known.aside.sets["news"]
    spot = {whole.items.ids[index]: place for place, index in enumerate(whole.order)}
    places = [spot[aside.items.ids[index]] for index in aside.order]
    for _ in range(studies):
        plain = {0.0: np.zeros(40), 0.5: 0.008 + 0.01 * chance.normal(size=40)}
        own = 1.1 * plain[0.5] + 0.0012 + 0.002 * chance.normal(size=40)
        known.on_all = lambda share, _names, kept=plain: {"news": kept[share]}  # type: ignore
        known.on_aside = lambda share, _names, kept=plain: {"news": kept[share][places]}  # type: ignore
        found = by_way(known, {"news": own[places]}, 0.5, 0.0)
        passed += found.upper_bound(0.95) <= 0.01
    assert passed / studies <= 0.05 + 2.0 * (0.05 * 0.95 / studies) ** 0.5
