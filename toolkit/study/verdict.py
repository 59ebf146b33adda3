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
        losses: losses by model, `[N]` each.
        sizes: what losses are divided by, `[N]`.
        groups: what is resampled together, `[N]`.
        scale: factor from losses over sizes to the unit.
        unit: unit of the figures, for people.
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
        sets: sets of the same unit and scale.
        losses: losses by model and set.
    """
    first_set = sets[0]
    if any(other.unit != first_set.unit for other in sets):
        raise EvaluationError(
            f"{', '.join(s.name for s in sets)}: have several units; name one of them."
        )
    return Items(
        {
            model: np.concatenate([np.asarray(by_set[s.name], dtype=np.float64) for s in sets])
            for model, by_set in losses.items()
        },
        np.concatenate([np.asarray(s.sizes, dtype=np.float64) for s in sets]),
        # With the set's name, as two sources may call different groups by one name.
        [f"{s.name}/{group}" for s in sets for group in s.groups],
        first_set.scale,
        first_set.unit,
        tuple(s.note for s in sets if s.note),
    )


@dataclass(frozen=True)
class MeasuredClaim:
    """What was measured of a claim.

    Attributes:
        interval: figure by itself, with the confidence asked for.
        together: the same, wide enough to hold together with the other claims'.
        verdict: what `together` says of the claim.
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
        measure: comparison of the claim.
        items: test items with the losses of all models that it names.
        confidence: confidence of all claims together.
        num_claims: number of claims that are judged together.
        resamples: number of resamples of the bootstrap.
        seed: seed of the resamples.

    Raises:
        EvaluationError: there are fewer than two groups.

    Reference:
        Dunn 1961, Multiple comparisons among means (Bonferroni).
    """
    # Bonferroni: of m claims each holds with 1 - (1 - confidence) / m by itself.
    confidence_together = 1.0 - (1.0 - confidence) / num_claims

    def measure_ratio(tops: Floats, sizes: Floats, scale: float) -> tuple[Interval, Interval]:
        # The same seed for both widths and all measures: they are of the same resamples.
        figures = bootstrap_figures(
            tops, sizes, items.groups, resamples=resamples, seed=seed, scale=scale
        )
        return intervals(figures, confidence)[0], intervals(figures, confidence_together)[0]

    of, against = _losses_of_side(measure.of, items), _losses_of_side(measure.against, items)
    if measure.unit == "difference":
        interval, together = measure_ratio(of - against, items.sizes, items.scale)
    elif measure.unit == "relative":
        interval, together = measure_ratio(of - against, against, 1.0)
    else:
        # A fraction of a way that may be none could be any number, so that is asked first.
        full_change = against - _losses_of_side(measure.fraction_of or "", items)
        _, way_interval = measure_ratio(full_change, items.sizes, items.scale)
        if way_interval.low <= 0.0 <= way_interval.high:
            return _no_share(measure, way_interval, items.unit)
        # Both signs turned where the way is one up: sizes of a ratio must be positive.
        sign = 1.0 if way_interval.low > 0.0 else -1.0
        interval, together = measure_ratio(sign * (against - of), sign * full_change, 1.0)
    limit = measure.threshold() if measure.within is None else measure.within
    return MeasuredClaim(interval, together, verdict_of(together, measure.expect, limit))


def _no_share(measure: MeasureSection, way: Interval, unit: str) -> MeasuredClaim:
    """No share of a way that may be none."""
    unknown_interval = Interval(float("nan"), float("-inf"), float("inf"))
    note = (
        f"{measure.fraction_of} and {measure.against} do not differ visibly "
        f"({way.ends(sign='+')} {unit}), so there is nothing to share"
    )
    return MeasuredClaim(unknown_interval, unknown_interval, NOT_VISIBLE, note)


def _losses_of_side(side: str | tuple[str, str], items: Items) -> Floats:
    """Losses of a model, or the change from one to another."""
    if isinstance(side, str):
        return items.losses[side]
    before, after = side
    return items.losses[after] - items.losses[before]


def verdict_of(interval: Interval, expect: Expectation, limit: float) -> Verdict:
    """Whether an interval lies wholly on the claimed side, wholly on the other, or neither.

    Args:
        interval: figure that was measured.
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
        # Equality is shown by an interval that lies wholly within the limit, not by one that holds
        # 0: with few documents every interval would.
        agrees, disagrees = -limit <= low and high <= limit, low > limit or high < -limit
    return "agrees" if agrees else "disagrees" if disagrees else NOT_VISIBLE
