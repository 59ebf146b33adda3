"""Figures of claims, by hand, and the rule of the verdict."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from toolkit.errors import EvaluationError
from toolkit.evaluate.sets import EvaluationSet
from toolkit.statistics.interval import Interval
from toolkit.study.config import MeasureSection
from toolkit.study.verdict import NOT_VISIBLE, Items, measure_claim, pool, verdict_of


@pytest.mark.parametrize(
    ("low", "high", "expect", "limit", "verdict"),
    [
        (-0.3, -0.1, "lower", 0.0, "agrees"),
        (0.1, 0.3, "lower", 0.0, "disagrees"),
        (-0.1, 0.1, "lower", 0.0, NOT_VISIBLE),
        (-0.1, 0.0, "lower", 0.0, NOT_VISIBLE),  # an end that touches is on neither side
        (0.6, 0.9, "higher", 0.5, "agrees"),
        (0.1, 0.4, "higher", 0.5, "disagrees"),
        (0.4, 0.6, "higher", 0.5, NOT_VISIBLE),
        (0.01, 0.04, "lower", 0.05, "agrees"),  # it costs something, but less than claimed
        (-0.01, 0.02, "equal", 0.02, "agrees"),
        (0.03, 0.05, "equal", 0.02, "disagrees"),
        (-0.05, -0.03, "equal", 0.02, "disagrees"),
        (0.01, 0.03, "equal", 0.02, NOT_VISIBLE),
        (-0.5, 0.5, "equal", 0.02, NOT_VISIBLE),  # too wide to say
        (-math.inf, math.inf, "lower", 0.0, NOT_VISIBLE),
    ],
)
def test_rule(low: float, high: float, expect: Any, limit: float, verdict: str):
    assert verdict_of(Interval((low + high) / 2, low, high), expect, limit) == verdict


def items(**losses: list[float]) -> Items:
    arrays = {name: np.array(values) for name, values in losses.items()}
    return Items(arrays, np.full(4, 2.0), ["a", "b", "c", "d"], 10.0, "bits per byte")


def measured(measure: dict[str, Any], found: Items, num_claims: int = 1) -> Any:
    return measure_claim(
        MeasureSection.model_validate(measure),
        found,
        confidence=0.95,
        num_claims=num_claims,
        resamples=2000,
        seed=0,
    )


def test_difference_is_paired_and_in_the_unit():
    # 10 * (1+1+1+1 less) / 8 bytes = -5 for every resample, though losses themselves vary much
    found = items(none=[9.0, 2.0, 5.0, 4.0], weak=[8.0, 1.0, 4.0, 3.0])
    result = measured({"of": "weak", "against": "none"}, found)
    assert result.interval == Interval(-5.0, -5.0, -5.0)
    assert result.verdict == "agrees"
    assert found.figure("none") == 25.0


def test_relative_to_the_loss_of_the_other():
    # losses are 4 % higher on every item: the ratio is 0.04 in every resample
    found = items(none=[10.0, 20.0, 30.0, 40.0], much=[10.4, 20.8, 31.2, 41.6])
    measure = {"of": "much", "against": "none", "unit": "relative", "expect": "equal"}
    assert measured({**measure, "within": 0.05}, found).verdict == "agrees"
    result = measured({**measure, "within": 0.03}, found)
    assert result.verdict == "disagrees"
    assert result.interval.estimate == pytest.approx(0.04)


def test_share_of_the_way():
    # general 1 loses 8 more as a specialist; the merge takes back 6 of 8 on every item
    found = items(general=[1.0, 2.0, 3.0, 4.0], cpt=[9.0, 10.0, 11.0, 12.0], merge=[3, 4, 5, 6])
    measure = {"of": "merge", "against": "cpt", "fraction_of": "general", "unit": "fraction"}
    result = measured({**measure, "expect": "higher"}, found)
    assert result.interval.estimate == pytest.approx(0.75)
    assert result.verdict == "agrees"
    # Where the way goes up, the share is the same: what the merge kept of a loss.
    back = {**measure, "against": "general", "fraction_of": "cpt", "expect": "lower"}
    result = measured(back, found)
    assert result.interval.estimate == pytest.approx(0.25)
    assert result.verdict == "agrees"


def test_no_share_where_there_is_no_way():
    found = items(general=[1.0, 2.0, 3.0, 4.0], cpt=[2.0, 1.0, 4.0, 3.0], merge=[1, 1, 1, 1])
    measure = {"of": "merge", "against": "cpt", "fraction_of": "general", "unit": "fraction"}
    result = measured({**measure, "expect": "higher"}, found)
    assert result.verdict == NOT_VISIBLE
    assert "do not differ visibly" in result.note
    assert math.isinf(result.interval.high)


def test_changes_are_differences_of_differences():
    # plain forgets 4 on each item, mixed 1: mixed forgets 3 less, 10 * 12 / 8 = 15
    found = items(
        plain=[1.0, 2.0, 1.0, 2.0],
        plain_later=[5.0, 6.0, 5.0, 6.0],
        mixed=[3.0, 3.0, 1.0, 1.0],
        mixed_later=[4.0, 4.0, 2.0, 2.0],
    )
    measure = {"of": ["mixed", "mixed_later"], "against": ["plain", "plain_later"]}
    result = measured(measure, found)
    assert result.interval == Interval(-15.0, -15.0, -15.0)


def test_more_claims_need_wider_intervals():
    none, moved = np.arange(12.0) + 5.0, np.array([1, 2, 3, 1, 2, 3, 0, 2, 1, 3, 2, 1]) / 4.0
    losses = {"none": none, "weak": none - moved}
    found = Items(losses, np.ones(12), [str(n) for n in range(12)], 1.0, "bits per byte")
    alone = measured({"of": "weak", "against": "none"}, found)
    five = measured({"of": "weak", "against": "none"}, found, num_claims=5)
    assert alone.interval == alone.together == five.interval
    assert five.together.low < alone.together.low
    assert five.together.high > alone.together.high
    # 1 - 0.05 / 5 = 0.99 alone is the same interval
    wide = measure_claim(
        MeasureSection(of="weak", against="none"),
        found,
        confidence=0.99,
        num_claims=1,
        resamples=2000,
        seed=0,
    )
    assert wide.interval.low == pytest.approx(five.together.low)


def set_of(name: str, unit: str = "bits per byte") -> EvaluationSet:
    return EvaluationSet(
        name, "domain", unit, ["1", "2"], ["g", "g"], [1.0, 3.0], [1, 1], name, list
    )


def test_sets_are_pooled_with_groups_apart():
    found = pool([set_of("a"), set_of("b")], {"m": {"a": [1.0, 2.0], "b": [3.0, 4.0]}})
    assert found.losses["m"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert found.groups == ["a/g", "a/g", "b/g", "b/g"]
    assert found.figure("m") == 10.0 / 8.0


def test_units_are_not_pooled():
    with pytest.raises(EvaluationError, match="have several units"):
        pool([set_of("a"), set_of("b", "error")], {})
