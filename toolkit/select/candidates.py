"""What a study says: figures of every candidate, and what the plain sweep has to be beaten by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.search.objective import Losses, Objective, guide_of
from toolkit.search.space import GENERAL, SPECIALIST
from toolkit.search.worker import Outcome
from toolkit.statistics.sampled_differences import Difference, combine


@dataclass(frozen=True)
class CandidateRow:
    """A candidate's figures on the documents of the search.

    Attributes:
        name: of the candidate.
        outcome: what became of it.
        values: figure of each set; of a dropped candidate what all documents would give it, as far
            as one can know. None where nothing is known.
        domain: weighted mean of the domain sets; NaN of a failed candidate.
        general: mean of the general sets that are in the unit of the first.
        general_loss_bound: one-sided upper bound, at most the tolerance where all sets are within.
        distance: from the general model, as a share of the specialist's own distance.
        loss_bounds: one-sided upper bound of the loss on each general set, in its unit.
    """

    name: str
    outcome: Outcome
    values: dict[str, float | None]
    domain: float
    general: float
    general_loss_bound: float
    distance: float
    loss_bounds: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.outcome.status == "complete"


def candidate_rows(outcomes: Sequence[Outcome], objective: Objective) -> list[CandidateRow]:
    """Figures of every candidate, each compared with the general model on the same documents."""
    by_name = {outcome.candidate.name: outcome for outcome in outcomes}
    start = by_name[GENERAL].losses
    guide = guide_of(by_name[SPECIALIST].losses, start)
    whole = [outcome.losses for outcome in outcomes if outcome.status == "complete"]
    whole_way = by_name[SPECIALIST].distance or 1.0
    rows = []
    for outcome in outcomes:
        values: dict[str, float | None] = dict.fromkeys(objective.sets)
        domain = general = bound = math.nan
        bounds: dict[str, float] = {}
        if outcome.status != "failed":
            found = objective.estimates(outcome.losses, whole, guide)
            values.update(found)
            domain, general = objective.domain(found), objective.general(found)
            bounds = objective.loss_bounds(outcome.losses, start, guide=guide)
            bound = objective.general_loss_bound(outcome.losses, start, guide=guide)
        rows.append(
            CandidateRow(
                outcome.candidate.name,
                outcome,
                values,
                domain,
                general,
                bound,
                outcome.distance / whole_way,
                bounds,
            )
        )
    return rows


def as_json(row: CandidateRow, qualified: bool) -> dict[str, Any]:
    """A candidate in `report.json`; what is not known is null."""
    outcome = row.outcome
    return {
        "name": row.name,
        "method": outcome.candidate.config.merge_method,
        "parameters": dict(outcome.candidate.parameters),
        "values": row.values,
        **{
            key: value if math.isfinite(value) else None
            for key, value in (
                ("domain", row.domain),
                ("general", row.general),
                ("general_loss_bound", row.general_loss_bound),
            )
        },
        "loss_bounds": {
            name: bound if math.isfinite(bound) else None for name, bound in row.loss_bounds.items()
        },
        "distance": row.distance,
        "qualified": qualified,
        "status": outcome.status,
        "tokens": outcome.tokens,
        "seconds": outcome.merge_seconds + outcome.score_seconds,
        "merge_seconds": outcome.merge_seconds,
        "order": outcome.order,
        **({"error": outcome.error} if outcome.error else {}),
    }


def by_item(objective: Objective, losses: Losses) -> dict[str, dict[str, float]]:
    """Losses by set and item id."""
    return {
        name: {
            raced.items.ids[index]: float(loss)
            for index, loss in zip(raced.order, losses[name], strict=True)
        }
        for name, raced in objective.sets.items()
        if len(losses.get(name, ())) == len(raced.order)
    }


def arranged(
    objective: Objective, losses: Mapping[str, Mapping[str, float]]
) -> dict[str, NDArray[np.float64]]:
    """Losses by item id in the order of an objective, of the sets that are known in full."""
    return {
        name: np.array([losses[name][raced.items.ids[index]] for index in raced.order])
        for name, raced in objective.sets.items()
        if name in losses and all(item in losses[name] for item in raced.items.ids)
    }


def merged_parts(*parts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Losses of different documents of the same sets, put together."""
    whole: dict[str, dict[str, float]] = {}
    for part in parts:
        for name, losses in part.items():
            whole.setdefault(name, {}).update(losses)
    return whole


def cannot_be_told_apart(
    objective: Objective, losses: Losses, others: Losses, confidence: float, num_pairs: int = 1
) -> bool:
    """Whether the interval of two candidates' domain difference holds zero."""
    level = 1.0 - (1.0 - confidence) / max(num_pairs, 1)
    interval = objective.domain_change(losses, others).interval(level)
    return interval.low <= 0.0 <= interval.high


def sweep_rows(
    outcomes: Sequence[Outcome], objective: Objective, confidence: float
) -> list[dict[str, Any]]:
    """The α-curve, with one of its own for each general set in another unit. Its bands are of the
    difference from the general model on the same documents: what all models share (some documents
    are harder) would only hide the curve."""
    whole = [outcome.losses for outcome in outcomes if outcome.status == "complete"]
    by_name = {outcome.candidate.name: outcome.losses for outcome in outcomes}
    start = by_name[GENERAL]
    guide = guide_of(by_name[SPECIALIST], start)
    base = objective.estimates(start, whole)
    rows = []
    for alpha, outcome in sweep_points(outcomes):
        known = [name for name, values in outcome.losses.items() if len(values)]
        if not set(objective.shown_general) <= set(known):
            continue
        general = dict.fromkeys(objective.shown_general, 1.0)
        row: dict[str, Any] = {"alpha": alpha}
        for role, level, weights in (
            ("domain", objective.domain(base), objective.weights),
            ("general", objective.general(base), general),
        ):
            interval = _interval(
                objective, outcome.losses, start, whole, weights, guide, confidence
            )
            row[role] = {key: level + value for key, value in interval.items()}
        others = {name for name in objective.tolerances if name in known} - set(general)
        row["sets"] = {}
        for name in sorted(others):
            own = {name: 1.0}
            interval = _interval(objective, outcome.losses, start, whole, own, guide, confidence)
            row["sets"][name] = {key: base[name] + value for key, value in interval.items()}
        rows.append(row)
    return rows


def _interval(
    objective: Objective,
    losses: Losses,
    start: Losses,
    whole: Sequence[Losses],
    weights: Mapping[str, float],
    guide: Losses,
    confidence: float,
) -> dict[str, float]:
    """Of a candidate's difference from the general model, as far as it is known."""
    if all(objective.sets[name].is_whole(losses[name]) for name in weights):
        return asdict(objective.change(weights, losses, start).interval(confidence))
    difference = _by_way_of(objective, losses, start, whole, weights, guide)
    return asdict(difference.interval(confidence))


def _by_way_of(
    objective: Objective,
    losses: Losses,
    start: Losses,
    whole: Sequence[Losses],
    weights: Mapping[str, float],
    guide: Losses,
) -> Difference:
    """A candidate's difference from the general model; where only part of it is known, by the
    specialist's pattern, or by way of the candidate scored in full that is most alike: from it to
    that one on the part, from that one to the general model on all."""
    parts = []
    for name in weights:
        raced = objective.sets[name]
        best = raced.difference(losses[name], start[name], guide.get(name))
        if len(losses[name]) < len(raced.order):
            for other in whole:
                near = raced.difference(losses[name], other[name], guide.get(name))
                far = raced.difference(other[name], start[name])
                variance = near.variance + far.variance
                if variance < best.variance:
                    estimate = near.estimate + far.estimate
                    best = Difference(estimate, variance, near.seen, near.total)
        parts.append(best)
    return combine(parts, list(weights.values()))


def sweep_points(outcomes: Sequence[Outcome]) -> list[tuple[float, Outcome]]:
    """The plain weighted means among the candidates, the two models as its ends, by α."""
    points = []
    for outcome in outcomes:
        candidate = outcome.candidate
        if candidate.name in (GENERAL, SPECIALIST):
            points.append((float(candidate.name == SPECIALIST), outcome))
        elif candidate.config.merge_method == "linear" and list(candidate.parameters) == ["alpha"]:
            points.append((float(candidate.parameters["alpha"]), outcome))
    return sorted(points, key=lambda point: (point[0], point[1].order))
