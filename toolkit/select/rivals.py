"""Methods against the plain sweep: each merge beside the plain mean that loses as much.

What promises more than the sweep on the search's documents is confirmed on those it never saw. A
claim needs three things at once: every general set within its tolerance, a gain on the domain, and
a lead over the plain mean of the same general loss.

Reference:
    Berger 1982, Multiparameter hypothesis testing and acceptance sampling: all three must hold, so
    none is corrected for the others; Bonferroni for the number confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from toolkit.search.objective import Losses, Objective
from toolkit.search.plain_sweep import Match, PlainSweep
from toolkit.search.worker import Outcome
from toolkit.select.bound import gain_bound, loss_bound
from toolkit.statistics.change_bound import ChangeBound
from toolkit.statistics.interval import Interval

_APART = 0.05  # of α: reserves are that much nearer to the general model


@dataclass(frozen=True)
class Finalist:
    """A merge that promises more than the plain sweep.

    Attributes:
        outcome: of the search.
        match: the plain mean that loses as much.
        lead: on the domain over that, on the search's documents; below 0 is better.
        promise: expected gain times the chance that the documents set aside show what they must.
    """

    outcome: Outcome
    match: Match
    lead: float
    promise: float


@dataclass(frozen=True)
class Confirmation:
    """What the documents set aside say of a finalist.

    Attributes:
        name: of the candidate.
        plain: name of the plain mean that loses as much.
        lead: domain figure minus that of the plain mean at the same general loss, with an interval
            corrected for the number of finalists.
        is_within: whether every general set is shown to stay within its tolerance.
        gains: whether a gain on the domain is shown.
    """

    name: str
    plain: str
    lead: Interval
    is_within: bool
    gains: bool

    @property
    def leads(self) -> bool:
        return self.lead.high < 0.0

    @property
    def is_confirmed(self) -> bool:
        return self.is_within and self.gains and self.leads


def shortlist(
    outcomes: Sequence[Outcome],
    sweep: PlainSweep,
    objective: Objective,
    general: Losses,
    at_least: float,
    speaking: Mapping[str, int],
    count: int,
) -> list[Finalist]:
    """The merges worth confirming, the most promising first, then reserves that lose less.

    Args:
        outcomes: merges by other methods, scored in full on the search's documents.
        sweep: the plain means on these.
        objective: of these.
        general: losses of the general model on these.
        at_least: domain change that must be bettered, such as that of the best plain mean.
        speaking: groups of each general set that will say whether a merge stays within it.
        count: how many at most.
    """
    promising_merges = []
    for outcome in outcomes:
        match = sweep.match(outcome.losses)
        change = objective.domain_difference(outcome.losses, general).estimate
        # A merge that gains nothing is never worth a confirmation, even where no plain mean gains.
        if match is None or change >= min(at_least, 0.0):
            continue
        reference = sweep.losses_at(match.alpha)
        lead = objective.domain_difference(outcome.losses, reference).estimate
        if lead < 0.0:
            chance = _chance_to_stay(objective, outcome.losses, general, speaking)
            promising_merges.append(Finalist(outcome, match, lead, -change * chance))
    # Ties by distance, then by name: the order of trying depends on how many workers there were.
    promising_merges.sort(key=lambda f: (-f.promise, f.outcome.distance, f.outcome.candidate.name))
    finalists: list[Finalist] = []
    for finalist in promising_merges:
        # Two merges of the same general loss would pass or fail together. Each reserve loses
        # clearly less than all before it, and so may pass where they do not.
        is_apart = all(finalist.match.alpha <= other.match.alpha - _APART for other in finalists)
        if finalist.promise > 0.0 and is_apart and len(finalists) < count:
            finalists.append(finalist)
    return finalists


def _chance_to_stay(
    objective: Objective, losses: Losses, general: Losses, speaking: Mapping[str, int]
) -> float:
    """Chance that every general set will be shown to stay within its tolerance."""
    return min(
        objective.set_change(name, losses, general)
        .as_of(speaking[name])
        .chance_to_show_below(tolerance, objective.confidence)
        for name, tolerance in objective.tolerances.items()
    )


def confirm(
    finalist: Finalist,
    plain: str,
    aside: Objective,
    losses: Losses,
    plain_losses: Losses,
    general: Losses,
    num_tests: int,
    known: Mapping[str, ChangeBound] = MappingProxyType({}),
) -> Confirmation:
    """Whether the documents set aside bear out what a finalist promised.

    The plain mean beside it was matched on the search's documents; what it loses more or less on
    these is made up for along the slope of the sweep.

    Args:
        finalist: of the shortlist.
        plain: name of the plain mean that loses as much.
        aside: of the documents.
        losses, plain_losses, general: of the three on these.
        num_tests: what bounds are corrected for.
        known: what the finalist loses on general sets of which more is known than these say.
    """
    # Bonferroni over the finalists; the three parts of a claim must all hold, so they need no share
    # of it.
    error_each = (1.0 - aside.confidence) / num_tests
    within_by_set = [
        known[name].upper_bound(1.0 - error_each) <= limit
        if name in known
        else loss_bound(aside, name, losses, general, 1.0 - error_each) <= limit
        for name, limit in aside.tolerances.items()
    ]
    match = finalist.match
    lead = aside.lead(losses, plain_losses, match.bound_set, match.slope)
    return Confirmation(
        finalist.outcome.candidate.name,
        plain,
        lead.interval(1.0 - error_each),
        all(within_by_set),
        gain_bound(aside, losses, general, 1.0 - error_each) < 0.0,
    )
