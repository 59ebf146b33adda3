"""What a study says: figures of every candidate, and what the plain sweep has to be beaten by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.search.objective import Losses, Objective, guide_of
from toolkit.search.space import GENERAL, alphas_by_name, find_sweep_end
from toolkit.search.worker import Outcome
from toolkit.select.results import CandidateResult, SweepPoint
from toolkit.statistics.interval import Interval
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
    general_losses = by_name[GENERAL].losses
    top = find_sweep_end(by_name)
    guide = guide_of(top.losses, general_losses)
    complete_losses = [outcome.losses for outcome in outcomes if outcome.status == "complete"]
    # Where both models are the same there is no distance to be a share of.
    whole_way = top.distance or 1.0
    rows = []
    for outcome in outcomes:
        values: dict[str, float | None] = dict.fromkeys(objective.sets)
        domain = general = bound = math.nan
        loss_bounds: dict[str, float] = {}
        if outcome.status != "failed":
            known_figures = objective.estimates(outcome.losses, complete_losses, guide)
            values.update(known_figures)
            domain, general = objective.domain(known_figures), objective.general(known_figures)
            loss_bounds = objective.loss_bounds(outcome.losses, general_losses, guide=guide)
            bound = objective.general_loss_bound(outcome.losses, general_losses, guide=guide)
        rows.append(
            CandidateRow(
                outcome.candidate.name,
                outcome,
                values,
                domain,
                general,
                bound,
                outcome.distance / whole_way,
                loss_bounds,
            )
        )
    return rows


def candidate_result(row: CandidateRow, qualified: bool) -> CandidateResult:
    """A candidate as it stands in the results; what is not known is None.

    Args:
        row: figures of the candidate.
        qualified: whether it is within every tolerance.
    """
    outcome = row.outcome
    return CandidateResult(
        name=row.name,
        method=outcome.candidate.config.merge_method,
        parameters=dict(outcome.candidate.parameters),
        values=row.values,
        domain=_finite_or_none(row.domain),
        general=_finite_or_none(row.general),
        general_loss_bound=_finite_or_none(row.general_loss_bound),
        loss_bounds={name: _finite_or_none(bound) for name, bound in row.loss_bounds.items()},
        distance=row.distance,
        qualified=qualified,
        status=outcome.status,
        tokens=outcome.tokens,
        seconds=outcome.merge_seconds + outcome.score_seconds,
        merge_seconds=outcome.merge_seconds,
        order=outcome.order,
        error=outcome.error,
    )


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def by_item(objective: Objective, losses: Losses) -> dict[str, dict[str, float]]:
    """Losses by set and item id."""
    return {
        name: {
            # Losses stand in the order of the race, which every part of the documents has for
            # itself; ids are the same in all of them.
            raced.items.ids[index]: float(loss)
            for index, loss in zip(raced.order, losses[name], strict=True)
        }
        for name, raced in objective.sets.items()
        # Sets known in part are left out: put together with another part they would look whole.
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
    losses_by_set: dict[str, dict[str, float]] = {}
    for part in parts:
        for name, losses in part.items():
            losses_by_set.setdefault(name, {}).update(losses)
    return losses_by_set


def cannot_be_told_apart(
    objective: Objective, losses: Losses, others: Losses, confidence: float, num_pairs: int = 1
) -> bool:
    """Whether the interval of two candidates' domain difference holds zero."""
    level = 1.0 - (1.0 - confidence) / max(num_pairs, 1)
    domain_interval = objective.domain_change(losses, others).interval(level)
    return domain_interval.low <= 0.0 <= domain_interval.high


def sweep_points_of(
    outcomes: Sequence[Outcome], objective: Objective, confidence: float
) -> tuple[SweepPoint, ...]:
    """The α-curve, with one of its own for each general set in another unit. Its bands are of the
    difference from the general model on the same documents: what all models share (some documents
    are harder) would only hide the curve."""
    complete_losses = [outcome.losses for outcome in outcomes if outcome.status == "complete"]
    by_name = {outcome.candidate.name: outcome.losses for outcome in outcomes}
    general_losses = by_name[GENERAL]
    guide = guide_of(find_sweep_end(by_name), general_losses)
    base = objective.estimates(general_losses, complete_losses)
    shown_general = dict.fromkeys(objective.shown_general, 1.0)
    sweep_points = []
    for alpha, outcome in plain_means(outcomes):
        known_sets = {name for name, values in outcome.losses.items() if len(values)}
        # A step that failed on an early set was never scored on the later ones: it has no place on
        # this curve.
        if not set(shown_general) <= known_sets:
            continue

        def band(level: float, weights: Mapping[str, float], losses: Losses) -> Interval:
            change = _interval(
                objective, losses, general_losses, complete_losses, weights, guide, confidence
            )
            return Interval(level + change.estimate, level + change.low, level + change.high)

        other_sets = sorted((set(objective.tolerances) & known_sets) - set(shown_general))
        sweep_points.append(
            SweepPoint(
                alpha=alpha,
                domain=band(objective.domain(base), objective.weights, outcome.losses),
                general=band(objective.general(base), shown_general, outcome.losses),
                sets={name: band(base[name], {name: 1.0}, outcome.losses) for name in other_sets},
            )
        )
    return tuple(sweep_points)


def _interval(
    objective: Objective,
    losses: Losses,
    start: Losses,
    whole: Sequence[Losses],
    weights: Mapping[str, float],
    guide: Losses,
    confidence: float,
) -> Interval:
    """Of a candidate's difference from the general model, as far as it is known."""
    # What is known in full has the bound that decides, so that the curve's band and the ladder's
    # bound say the same.
    if all(objective.sets[name].is_whole(losses[name]) for name in weights):
        return objective.change(weights, losses, start).interval(confidence)
    return _by_way_of(objective, losses, start, whole, weights, guide).interval(confidence)


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
    set_differences = []
    for name in weights:
        raced = objective.sets[name]
        best_difference = raced.difference(losses[name], start[name], guide.get(name))
        # A merge that was scored in full may differ less from this one on the part than the general
        # model does, which leaves less open.
        if len(losses[name]) < len(raced.order):
            for other in whole:
                to_other = raced.difference(losses[name], other[name], guide.get(name))
                from_other = raced.difference(other[name], start[name])
                variance = to_other.variance + from_other.variance
                if variance < best_difference.variance:
                    estimate = to_other.estimate + from_other.estimate
                    best_difference = Difference(estimate, variance, to_other.seen, to_other.total)
        set_differences.append(best_difference)
    return combine(set_differences, list(weights.values()))


def plain_means(outcomes: Sequence[Outcome]) -> list[tuple[float, Outcome]]:
    """The points of the plain sweep among the candidates, its ends among them, by α."""
    alphas = alphas_by_name(outcome.candidate for outcome in outcomes)
    points_by_alpha = [
        (alphas[outcome.candidate.name], outcome)
        for outcome in outcomes
        if outcome.candidate.name in alphas
    ]
    return sorted(points_by_alpha, key=lambda point: (point[0], point[1].order))
