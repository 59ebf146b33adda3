"""What sets can see, said before the search."""

from __future__ import annotations

import numpy as np
import torch

from tests.helpers.fakes import made_up_set, unraced_objective
from toolkit.pipeline.power import round_to_four_bits
from toolkit.pipeline.set_power import measure_power
from toolkit.search.objective import Objective


def objective_of(groups: int, tolerance: float) -> Objective:
    return unraced_objective(
        [made_up_set("filings", "domain", groups), made_up_set("news", "general", groups)],
        tolerance=tolerance,
    )


def test_each_set_says_what_it_sees():
    objective = objective_of(20, 0.01)
    start = {name: np.ones(20) for name in ("filings", "news")}
    moved = {name: start[name] + 0.1 * (-1.0) ** np.arange(20) for name in start}
    filings, news = measure_power(objective, moved, start)
    assert (filings.tolerance, filings.needed) == (None, None)
    assert "see a gain of" in filings.sentence
    assert not news.is_enough
    assert news.needed is not None
    assert news.needed > 20
    assert f"about {news.needed} items are needed" in news.sentence
    enough = measure_power(objective_of(20, 10.0), moved, start)[1]
    assert enough.is_enough
    assert "10 is tolerated" in enough.sentence


def test_four_bits_are_near():
    model = torch.nn.Linear(64, 8)
    before = model.weight.detach().clone()
    round_to_four_bits(model)
    moved = (model.weight.detach() - before).abs().max() / before.abs().max()
    assert 0.0 < float(moved.detach()) <= 1 / 14 + 1e-6
    assert len(torch.unique(model.weight.detach()[0, :32])) <= 15
