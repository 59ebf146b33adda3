"""The decision: the best plain mean that is shown to keep the general ability, or a merge that is
shown to do better than the plain mean of the same general loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from toolkit.search.plain_sweep import PlainSweep
from toolkit.search.space import GENERAL, SPECIALIST, alphas_by_name
from toolkit.search.worker import Outcome
from toolkit.select.candidates import CandidateRow, candidate_rows
from toolkit.select.choice import Choice, ScoredCandidate
from toolkit.select.ladder import LadderStep, climb, passed_steps
from toolkit.select.reason import describe_step, name_held_sets, reason_of
from toolkit.select.rivals import Confirmation, Finalist, confirm, shortlist
from toolkit.select.sweep_tests import DecisionSettings, SweepTests
from toolkit.select.validation_losses import ValidationLosses
from toolkit.select.way import can_go_by_way, loss_by_way_of


@dataclass(frozen=True)
class Decision:
    """What was decided, and on what grounds.

    Attributes:
        outcomes: of the search, and plain means that were scored for the decision.
        rows: figures of each on the documents of the search.
        options: the same, as far as a choice needs them.
        choice: what was chosen, in words too.
        chosen: what became of it.
        steps: plain means tested on all validation documents, in this order.
        confirmations: of merges that promised more.
        changes: of the plain means that passed, by name: domain change on all validation documents.
    """

    outcomes: list[Outcome]
    rows: list[CandidateRow]
    options: list[ScoredCandidate]
    choice: Choice
    chosen: Outcome
    steps: list[LadderStep]
    confirmations: list[Confirmation]
    changes: dict[str, float]

    @property
    def plain_mean(self) -> Outcome:
        """The plain mean that a merge is shown beside: itself where it is one, else the best of
        those that passed, else the safest."""
        if self.chosen.candidate.name in _on_sweep(self.outcomes).keys() - {GENERAL}:
            return self.chosen
        passed = passed_steps(self.steps) or self.steps[:1]
        gains = {step.name: self.changes.get(step.name, 0.0) for step in passed}
        best = min(gains, key=lambda name: gains[name])
        return next(o for o in self.outcomes if o.candidate.name == best)


def decide(
    outcomes: Sequence[Outcome],
    losses: ValidationLosses,
    settings: DecisionSettings,
    tell: Callable[[str], None] = lambda _: None,
) -> Decision:
    """Choose one of the merges of a search.

    The plain sweep is climbed on all validation documents. Merges by other methods are looked at
    where they promise more, on the search's documents, than the plain mean of the same general
    loss, and gain more than the best plain mean; they are confirmed on the documents set aside.

    Args:
        outcomes: of the search.
        losses: scores what is asked for.
        settings: see there.
        tell: is told of each step.
    """
    sweep = SweepTests(outcomes, losses, settings)

    def test(alpha: float) -> LadderStep:
        step = sweep.test(alpha)
        tell(f"{step.name}: {describe_step(step, name_held_sets(losses.whole))}")
        return step

    steps = climb(sweep.usable_alphas(), test, settings.refine)
    plain = sweep.best_gain(passed_steps(steps))
    # Only after the gains were looked at: which steps were scored on all domain documents is known
    # then.
    everything = sweep.all_outcomes(steps)
    steps_passed = passed_steps(steps)
    confirmations, better = _methods(everything, sweep, steps_passed, plain, len(outcomes) - 1)

    chosen = better or plain or GENERAL
    # The search's documents are those that all candidates were scored on, so figures beside each
    # other are of these alone; what is decided is decided on more.
    rows = candidate_rows(everything, losses.search)
    options = [_option(row) for row in rows if row.outcome.status != "failed"]
    qualified = _qualified(options, steps, losses.search.tolerance)
    reason = reason_of(chosen, steps, sweep.changes, confirmations, losses, settings.confidence)
    choice = Choice(chosen, reason, qualified, any_merge=chosen != GENERAL)
    by_name = {outcome.candidate.name: outcome for outcome in everything}
    return Decision(
        everything,
        rows,
        options,
        choice,
        by_name[chosen],
        steps,
        confirmations,
        dict(sweep.changes),
    )


def _option(row: CandidateRow) -> ScoredCandidate:
    return ScoredCandidate(
        row.name, row.domain, row.general, row.general_loss_bound, row.distance, row.is_complete
    )


def _qualified(
    options: Sequence[ScoredCandidate], steps: Sequence[LadderStep], tolerance: float
) -> tuple[str, ...]:
    """Plain means as they were tested on all validation documents, others by those of the
    search."""
    tested_within = {step.name: step.is_within for step in steps}

    def is_within(option: ScoredCandidate) -> bool:
        if option.name in tested_within:
            return tested_within[option.name]
        within_by_search = option.is_complete and option.general_loss_bound <= tolerance
        return within_by_search or option.name == GENERAL

    return tuple(option.name for option in options if is_within(option))


def _methods(
    outcomes: Sequence[Outcome],
    sweep: SweepTests,
    passed: Sequence[LadderStep],
    plain: str | None,
    num_tried: int,
) -> tuple[list[Confirmation], str | None]:
    """What was confirmed, and the best that is to be chosen instead of the plain mean.

    Args:
        outcomes: all.
        sweep: the plain means as they were tested.
        passed: those that are within every tolerance.
        plain: name of the best of them.
        num_tried: candidates of the search, for which bounds are corrected where no documents were
            set aside.
    """
    losses, aside = sweep.losses, sweep.losses.aside or sweep.losses.search
    by_name = {outcome.candidate.name: outcome for outcome in outcomes}
    # How many groups will speak: all, where a plain mean tested on all of them vouches for a merge
    # beside it (`way`), else only those set aside.
    speaking_sets = {
        name: (losses.whole if passed and can_go_by_way(losses, name) else aside).sets[name]
        for name in sweep.kept
    }
    groups = {name: raced.num_groups for name, raced in speaking_sets.items()}
    finalists = _finalists(outcomes, sweep, None if plain is None else by_name[plain], groups)
    # Documents set aside had no part in picking the finalists, so the correction is for these
    # alone. The search's own documents picked them among all that were tried.
    num_tests = len(finalists) if losses.aside is not None else num_tried
    names = [*sweep.domain, *sweep.kept]
    confirmations = []
    for finalist in finalists:
        # The plain mean beside a merge was matched between the points scored, by a spline; here it
        # is merged and scored itself.
        twin = sweep.outcome_at(round(finalist.match.alpha, 2))
        bound_set = [finalist.match.bound_set] if finalist.match.bound_set else []
        losses_aside = (
            losses.on_aside(finalist.outcome, names),
            losses.on_aside(twin, [*sweep.domain, *bound_set]),
            losses.on_aside(sweep.general, names),
        )
        step = sweep.nearest_passed(passed, finalist.match.alpha)
        known_changes = (
            {}
            if step is None
            else {
                name: loss_by_way_of(losses, name, losses_aside[0], step, sweep.general)
                for name in sweep.kept
                if can_go_by_way(losses, name)
            }
        )
        confirmations.append(
            confirm(finalist, twin.candidate.name, aside, *losses_aside, num_tests, known_changes)
        )
    change_by_name = {
        item.name: sweep.change(sweep.domain_losses(by_name[item.name]))
        for item in confirmations
        if item.is_confirmed
    }
    # Merges and plain means are compared by their gain on all validation documents, as the best
    # plain mean was chosen there.
    plain_change = sweep.changes[plain] if plain is not None else 0.0
    better_names = [name for name, change in change_by_name.items() if change < plain_change]
    sweep.changes.update(change_by_name)
    return confirmations, min(better_names, key=lambda name: change_by_name[name], default=None)


def _on_sweep(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The places of plain merges between the ends of the sweep, these included, by name."""
    alphas = alphas_by_name(outcome.candidate for outcome in outcomes)
    return {name: alpha for name, alpha in alphas.items() if 0.0 <= alpha <= 1.0}


def _finalists(
    outcomes: Sequence[Outcome],
    sweep: SweepTests,
    plain: Outcome | None,
    speaking: Mapping[str, int],
) -> list[Finalist]:
    """Merges by other methods that promise more than the sweep on the search's documents."""
    losses, start = sweep.losses, sweep.general.losses
    objective = losses.search
    complete_outcomes = [o for o in outcomes if o.status == "complete"]
    on_sweep = _on_sweep(outcomes)
    losses_by_alpha = {
        on_sweep[o.candidate.name]: o.losses
        for o in complete_outcomes
        if o.candidate.name in on_sweep
    }
    models = {GENERAL, SPECIALIST}  # they are no merges by another method
    at_least = 0.0
    if plain is not None:
        # The ladder's own steps were not raced, so they are scored on the search's documents first:
        # finalists are compared on these.
        plain_losses = losses.on_search(plain, sweep.domain)
        at_least = objective.domain_difference(plain_losses, start).estimate
    return shortlist(
        [o for o in complete_outcomes if o.candidate.name not in {*on_sweep, *models}],
        PlainSweep(objective, losses_by_alpha),
        objective,
        start,
        at_least,
        speaking,
        sweep.settings.finalists,
    )
