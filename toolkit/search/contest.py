"""One candidate's race: which items it is scored on, and when it is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.search.objective import Losses, Objective, guide_of

_SHOWN_GROUPS, _FIGURE_GROUPS = 4, 2
"""Documents behind a figure of a candidate that is out already: of a point of the sweep, which has
an interval, the fewest that the specialist's pattern can be fitted to; of others, whose figure only
guides the sampler, the fewest that tell it from one document's chance."""


@dataclass(frozen=True)
class Rivals:
    """What a candidate is compared with, as far as it is known.

    Attributes:
        general, specialist: losses of the two models.
        best: of the best candidate so far.
    """

    general: Losses | None
    specialist: Losses | None
    best: Losses | None


def best_of(whole: Sequence[Losses], general: Losses, objective: Objective) -> Losses:
    """Of candidates scored in full and within the tolerance, the one with the lowest domain figure;
    the general model where none gains."""
    best, level = general, 0.0
    for losses in whole:
        if objective.general_loss_bound(losses, general) > objective.tolerance:
            continue
        change = objective.domain_difference(losses, general).estimate
        if change < level:
            best, level = losses, change
    return best


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
    itself loses too much, where they cost less than the domain, then the domain, then the rest. Who
    is out gets what is missing of a domain figure, from fewer documents.

    Args:
        objective: of the sets.
        losses: of the candidate so far, which `score` adds to.
        score: scores what is missing of sets, up to so many items of each.
        rivals: what is known of others, now.
        may_drop: whether it may be dropped at all.
        is_shown: whether it is a point of the sweep, which has a general figure even when dropped.
        after_look: called where the candidate goes on.

    Returns:
        Whether it stayed to the end.
    """
    for look in range(objective.num_looks - 1):
        for names in _questions(objective, look, rivals()):
            score({name: objective.sets[name].cuts[look] for name in names})
            if may_drop and _is_out(objective, names, losses, rivals()):
                for name in (*objective.weights, *(objective.shown_general if is_shown else ())):
                    if not len(losses.get(name, ())):
                        raced = objective.sets[name]
                        groups = _SHOWN_GROUPS if is_shown else _FIGURE_GROUPS
                        score({name: int(np.searchsorted(raced.groups, groups))})
                return False
        after_look()
    score({name: len(raced.order) for name, raced in objective.sets.items()})
    return True


def _questions(objective: Objective, look: int, rivals: Rivals) -> list[list[str]]:
    def cost(*names: str) -> int:
        sets = [objective.sets[name] for name in names]
        return sum(raced.cost(raced.cuts[look]) for raced in sets)

    domain, general = list(objective.weights), sorted(objective.tolerances, key=cost)
    first = []
    if rivals.general is not None and rivals.specialist is not None:
        beyond = objective.beyond_tolerances(rivals.specialist, rivals.general)
        first = [name for name in general if beyond[name] > 0.0 and cost(name) < cost(*domain)]
    rest = [name for name in general if name not in first]
    return [*([name] for name in first), domain, *([name] for name in rest)]


def _is_out(objective: Objective, names: Sequence[str], losses: Losses, rivals: Rivals) -> bool:
    if rivals.general is None or rivals.best is None:
        return False
    guide = guide_of(rivals.specialist, rivals.general)
    if names[0] in objective.weights:
        return objective.is_behind(losses, rivals.best, guide)
    return objective.loses_too_much(names[0], losses, rivals.general, guide)
