"""From losses of test items to a figure with its interval, and from that to a verdict.

Legend: N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolkit.errors import EvaluationError
from toolkit.evaluate.sets import EvaluationSet
from toolkit.statistics.bootstrap import Floats, bootstrap_figures, intervals
from toolkit.statistics.interval import Interval
from toolkit.study.config import MeasureSection

Verdict = Literal["agrees", "not visible at this scale", "disagrees"]
NOT_VISIBLE: Verdict = "not visible at this scale"
Expectation = Literal["lower", "higher", "equal"]


@dataclass(frozen=True)
class Items:
    """Test items of one or several sets of one unit, with the losses of every model on them.

    Attributes:
        losses: by model, `[N]` each.
        sizes: what losses are divided by, `[N]`.
        groups: what is resampled together, `[N]`.
        scale: from losses over sizes to the unit.
        unit: for people.
        notes: what a reader of the figures should know.
    """

    losses: Mapping[str, Floats]
    sizes: Floats
    groups: Sequence[str]
    scale: float
    unit: str
    notes: tuple[str, ...] = ()

    def figure(self, model: str) -> float:
        """Loss of a model in the unit."""
        return float(self.scale * np.sum(self.losses[model]) / np.sum(self.sizes))


def pool(
    sets: Sequence[EvaluationSet], losses: Mapping[str, Mapping[str, Sequence[float]]]
) -> Items:
    """Sets of one unit as one; their groups stay apart.

    Args:
        sets: of the same unit and scale.
        losses: by model and set.
    """
    first = sets[0]
    if any(other.unit != first.unit for other in sets):
        raise EvaluationError(
            f"{', '.join(s.name for s in sets)}: have several units; name one of them."
        )
    return Items(
        {
            model: np.concatenate([np.asarray(own[s.name], dtype=np.float64) for s in sets])
            for model, own in losses.items()
        },
        np.concatenate([np.asarray(s.sizes, dtype=np.float64) for s in sets]),
        [f"{s.name}/{group}" for s in sets for group in s.groups],
        first.scale,
        first.unit,
        tuple(s.note for s in sets if s.note),
    )


@dataclass(frozen=True)
class MeasuredClaim:
    """What was measured of a claim.

    Attributes:
        interval: the figure, by itself with the confidence asked for.
        together: the same, wide enough to hold together with the other claims'.
        verdict: by `together`.
        note: why there is no verdict, where there is a reason beside the interval.
    """

    interval: Interval
    together: Interval
    verdict: Verdict
    note: str = ""


def measure_claim(
    measure: MeasureSection,
    items: Items,
    *,
    confidence: float,
    num_claims: int,
    resamples: int,
    seed: int,
) -> MeasuredClaim:
    """The figure that a measure asks for, paired by item, and what it says of the claim.

    Args:
        measure: of the claim.
        items: with the losses of all models it names.
        confidence: of all claims together.
        num_claims: how many are judged together.
        resamples: of the bootstrap.
        seed: of the resamples.

    Raises:
        EvaluationError: there are fewer than two groups.

    Reference:
        Dunn 1961, Multiple comparisons among means (Bonferroni).
    """
    alone, wide = confidence, 1.0 - (1.0 - confidence) / num_claims

    def ratio(tops: Floats, sizes: Floats, scale: float) -> tuple[Interval, Interval]:
        found = bootstrap_figures(
            tops, sizes, items.groups, resamples=resamples, seed=seed, scale=scale
        )
        return intervals(found, alone)[0], intervals(found, wide)[0]

    of, against = _side(measure.of, items), _side(measure.against, items)
    if measure.unit == "difference":
        interval, together = ratio(of - against, items.sizes, items.scale)
    elif measure.unit == "relative":
        interval, together = ratio(of - against, against, 1.0)
    else:
        whole = against - _side(measure.fraction_of or "", items)
        way = ratio(whole, items.sizes, items.scale)[1]
        if way.low <= 0.0 <= way.high:
            nothing = Interval(float("nan"), float("-inf"), float("inf"))
            return MeasuredClaim(
                nothing,
                nothing,
                NOT_VISIBLE,
                f"{measure.fraction_of} and {measure.against} do not differ visibly "
                f"({way.low:+.4f} to {way.high:+.4f} {items.unit}), so there is nothing to share",
            )
        # Both signs turned where the way is one up: sizes of a ratio must be positive.
        sign = 1.0 if way.low > 0.0 else -1.0
        interval, together = ratio(sign * (against - of), sign * whole, 1.0)
    return MeasuredClaim(interval, together, verdict_of(together, measure.expect, _limit(measure)))


def _side(side: str | tuple[str, str], items: Items) -> Floats:
    if isinstance(side, str):
        return items.losses[side]
    before, after = side
    return items.losses[after] - items.losses[before]


def _limit(measure: MeasureSection) -> float:
    return measure.threshold() if measure.within is None else measure.within


def verdict_of(interval: Interval, expect: Expectation, limit: float) -> Verdict:
    """Whether an interval lies wholly on the claimed side, wholly on the other, or neither.

    Args:
        interval: of the figure.
        expect: what is claimed of it.
        limit: what it is claimed to be lower or higher than; of `equal`, how far from 0 at most.

    >>> verdict_of(Interval(-0.2, -0.3, -0.1), "lower", 0.0)
    'agrees'
    >>> verdict_of(Interval(0.0, -0.1, 0.1), "equal", 0.05)
    'not visible at this scale'
    """
    low, high = interval.low, interval.high
    if expect == "lower":
        agrees, disagrees = high < limit, low > limit
    elif expect == "higher":
        agrees, disagrees = low > limit, high < limit
    else:
        agrees, disagrees = -limit <= low and high <= limit, low > limit or high < -limit
    return "agrees" if agrees else "disagrees" if disagrees else NOT_VISIBLE
