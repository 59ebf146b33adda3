"""One candidate's race: which items it is scored on, and when it is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.search.objective import Losses, Objective, guide_of
from toolkit.search.plain_sweep import PlainSweep

SHOWN_GROUPS, _FIGURE_GROUPS = 4, 2
"""Documents behind a figure of a candidate that is out already: of a point of the sweep, which has
an interval, the fewest that the specialist's pattern can be fitted to; of others, whose figure only
guides the sampler, the fewest that tell it from one document's chance."""


@dataclass(frozen=True)
class Rivals:
    """What a candidate is compared with, as far as it is known.

    Attributes:
        general, specialist: losses of the two models.
        best: of the best plain mean so far that stays within the tolerance.
        sweep: the plain means as a curve.
    """

    general: Losses | None
    specialist: Losses | None
    best: Losses | None
    sweep: PlainSweep | None


def best_of(full_losses: Sequence[Losses], general: Losses, objective: Objective) -> Losses:
    """Of candidates scored in full and within the tolerance, the one with the lowest domain figure;
    the general model where none gains."""
    best_losses, best_change = general, 0.0
    for losses in full_losses:
        if objective.general_loss_bound(losses, general) > objective.tolerance:
            continue
        change = objective.domain_difference(losses, general).estimate
        if change < best_change:
            best_losses, best_change = losses, change
    return best_losses


def rivals_among(points: Mapping[float, Losses], objective: Objective) -> Rivals:
    """What a candidate is compared with.

    Args:
        points: losses of plain means that are known in full, by α: the general model is 0, the
            specialist 1.
        objective: of the sets.
    """
    general, specialist = points.get(0.0), points.get(1.0)
    if general is None or specialist is None:
        return Rivals(general, specialist, None, None)
    best = best_of(list(points.values()), general, objective)
    return Rivals(general, specialist, best, PlainSweep(objective, points))


def run_race(
    objective: Objective,
    losses: Losses,
    score: Callable[[Mapping[str, int]], None],
    rivals: Callable[[], Rivals],
    *,
    may_drop: bool,
    is_shown: bool,
    after_look: Callable[[], None] = lambda: None,
) -> bool:
    """Score a candidate look by look.

    At each look one question after the other is asked: most candidates are dropped at the first,
    and then need not be scored on the other sets. First come general sets on which the specialist
    loses, then the domain, then the rest. On the domain a candidate must promise more than the best
    plain mean so far, and surely more than the plain mean of its own general loss: whatever goes
    farther towards the specialist gains more, by any method. Points of the sweep are what others
    are compared with, and are only dropped for what they lose. Who is out gets what is missing of a
    domain figure, from fewer documents.

    Args:
        objective: of the sets.
        losses: of the candidate so far, which `score` adds to.
        score: scores what is missing of sets, up to so many items of each.
        rivals: what is known of others, now.
        may_drop: whether it may be dropped at all.
        is_shown: whether it is a point of the sweep, which has a general figure even when dropped,
            and is not dropped for its domain figure.
        after_look: called where the candidate goes on.

    Returns:
        Whether it stayed to the end.
    """
    for look in range(objective.num_looks - 1):
        # Rivals are asked for anew each time: other workers may have scored a better one meanwhile.
        for counts in _questions(objective, look, rivals()):
            score(counts)
            is_asked = may_drop and not (is_shown and objective.weights.keys() & counts)
            if is_asked and _is_out(objective, list(counts), losses, rivals()):
                for name in (*objective.weights, *(objective.shown_general if is_shown else ())):
                    if not len(losses.get(name, ())):
                        raced = objective.sets[name]
                        groups = SHOWN_GROUPS if is_shown else _FIGURE_GROUPS
                        score({name: int(np.searchsorted(raced.groups, groups))})
                return False
        after_look()
    score({name: len(raced.order) for name, raced in objective.sets.items()})
    return True


def _questions(objective: Objective, look: int, rivals: Rivals) -> list[dict[str, int]]:
    """What is asked at a look, one question after the other: items to be known, by set."""

    def cost(counts: Mapping[str, int]) -> int:
        return sum(objective.sets[name].cost(count) for name, count in counts.items())

    def at_look(*names: str) -> dict[str, int]:
        return {name: objective.sets[name].cuts[look] for name in names}

    domain = at_look(*objective.weights)
    # What may be lost on a domain set is asked of those alone that are scored in full.
    kept_names = [name for name in objective.tolerances if name not in objective.weights]
    # The cheapest first: whoever is out at it has cost no more.
    general_names = sorted(kept_names, key=lambda name: cost(at_look(name)))
    lossy = rivals.sweep.lossy_sets if rivals.sweep is not None else ()
    first = [at_look(name) for name in general_names if name in lossy]
    # Where a set costs no more in full than the domain's part, what it says is certain for little.
    full_sets = [{name: len(objective.sets[name].order)} for name in general_names if name in lossy]
    first += [
        counts for counts in full_sets if cost(counts) <= cost(domain) and counts not in first
    ]
    return [*first, domain, *(at_look(name) for name in general_names if name not in lossy)]


def _is_out(objective: Objective, names: Sequence[str], losses: Losses, rivals: Rivals) -> bool:
    if rivals.general is None:
        return False
    guide = guide_of(rivals.specialist, rivals.general)
    if names[0] not in objective.weights:
        return objective.loses_too_much(names[0], losses, rivals.general, guide)
    if rivals.best is None or rivals.sweep is None:
        return False
    if objective.is_behind(losses, rivals.best, guide):
        return True
    # Whatever goes farther towards the specialist gains more, so that a candidate must also beat
    # the plain mean that loses as much: surely, as that one is never scored itself but lies on a
    # curve, which a figure alone would follow by chance.
    match = rivals.sweep.match(losses, guide)
    if match is None:
        return False
    return objective.is_behind(losses, rivals.sweep.losses_at(match.alpha), guide, surely=True)
