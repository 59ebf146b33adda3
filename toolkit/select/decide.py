"""The decision: the best plain mean that is shown to keep the general ability, or a merge that is
shown to do better than the plain mean of the same general loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from toolkit.search.contest import SHOWN_GROUPS
from toolkit.search.objective import Losses
from toolkit.search.outcome import Row, candidate_rows, cannot_be_told_apart
from toolkit.search.plain_sweep import PlainSweep
from toolkit.search.space import GENERAL, SPECIALIST, alpha_of, endpoint, sweep_point
from toolkit.search.worker import Outcome
from toolkit.select import Candidate, Choice
from toolkit.select.bound import gain_bound, loss_bound
from toolkit.select.ladder import SetTest, Step, climb, passed_steps
from toolkit.select.reason import describe_step, reason_of
from toolkit.select.rivals import Confirmation, confirm, shortlist
from toolkit.select.tuning_losses import TuningLosses


@dataclass(frozen=True)
class Decision:
    """What was decided, and on what grounds.

    Attributes:
        outcomes: of the search, and plain means that were scored for the decision.
        rows: figures of each on the documents of the search.
        options: the same, as far as a choice needs them.
        choice: what was chosen, in words too.
        chosen: what became of it.
        steps: plain means tested on all tuning documents, in this order.
        confirmations: of merges that promised more.
        changes: of the plain means that passed, by name: domain change on all tuning documents.
    """

    outcomes: list[Outcome]
    rows: list[Row]
    options: list[Candidate]
    choice: Choice
    chosen: Outcome
    steps: list[Step]
    confirmations: list[Confirmation]
    changes: dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How it is decided.

    Attributes:
        alphas: of the sweep.
        refine: halvings between the last step that passes and the first that fails.
        finalists: merges to be confirmed, at most.
        confidence: of every bound.
    """

    alphas: tuple[float, ...]
    refine: int
    finalists: int
    confidence: float


def decide(
    outcomes: Sequence[Outcome],
    losses: TuningLosses,
    settings: Settings,
    tell: Callable[[str], None] = lambda _: None,
) -> Decision:
    """Choose one of the merges of a search.

    The plain sweep is climbed on all tuning documents. Merges by other methods are looked at where
    they promise more, on the search's documents, than the plain mean of the same general loss, and
    gain more than the best plain mean; they are confirmed on the documents set aside.

    Args:
        outcomes: of the search.
        losses: scores what is asked for.
        settings: see there.
        tell: is told of each step.
    """
    sweep = SweepTests(outcomes, losses, settings)

    def test(alpha: float) -> Step:
        step = sweep.test(alpha)
        tell(f"{step.name}: {describe_step(step)}")
        return step

    steps = climb(sweep.usable_alphas(), test, settings.refine)
    plain = sweep.best_gain(passed_steps(steps))
    everything = sweep.all_outcomes(steps)
    confirmations, better = _methods(everything, sweep, plain, len(outcomes) - 1)

    general = sweep.general.candidate.name
    chosen = better or plain or general
    rows = candidate_rows(everything, losses.search)
    options = [_option(row) for row in rows if row.outcome.status != "failed"]
    tested = {step.name: step.is_within for step in steps}
    limit = losses.search.tolerance
    qualified = tuple(
        option.name
        for option in options
        if tested.get(
            option.name,
            option.name == general or (option.is_complete and option.general_loss_bound <= limit),
        )
    )
    reason = reason_of(chosen, steps, sweep.changes, confirmations, losses, settings.confidence)
    choice = Choice(chosen, reason, qualified, any_merge=chosen != general)
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


def _option(row: Row) -> Candidate:
    return Candidate(
        row.name, row.domain, row.general, row.general_loss_bound, row.distance, row.is_complete
    )


class SweepTests:
    """Plain means on all tuning documents.

    Args:
        outcomes: of the search.
        losses: scores what is asked for.
        settings: of the decision.
    """

    def __init__(
        self, outcomes: Sequence[Outcome], losses: TuningLosses, settings: Settings
    ) -> None:
        self._settings = settings
        self.losses = losses
        self._outcomes = list(outcomes)
        self._by_key = {outcome.candidate.key: outcome for outcome in outcomes}
        by_name = {outcome.candidate.name: outcome for outcome in outcomes}
        self.general, self.specialist = by_name[GENERAL], by_name[SPECIALIST]
        self.changes: dict[str, float] = {}
        whole = losses.whole
        self.domain, self.kept = list(whole.weights), list(whole.tolerances)
        self._start = losses.on_all(self.general, [*self.domain, *self.kept])

    def outcome_at(self, alpha: float) -> Outcome:
        """The plain mean of this α, one of the search's where it was tried."""
        candidate = endpoint(SPECIALIST) if alpha == 1.0 else sweep_point(alpha)
        if alpha == 0.0:
            return self.general
        if candidate.key not in self._by_key:
            distance = abs(alpha) * self.specialist.distance
            order = len(self._by_key)
            outcome = Outcome(candidate, "dropped", {}, distance, 0, 0.0, 0.0, order)
            self._by_key[candidate.key] = outcome
        return self._by_key[candidate.key]

    def usable_alphas(self) -> list[float]:
        """Of the sweep, the specialist among them, without those whose merge failed."""
        alphas = [alpha for alpha in (*self._settings.alphas, 1.0) if alpha > 0.0]
        return [alpha for alpha in alphas if self.outcome_at(alpha).status != "failed"]

    def test(self, alpha: float) -> Step:
        """Set by set, the cheapest first, up to the first that fails."""
        outcome, objective = self.outcome_at(alpha), self.losses.whole
        tests: list[SetTest] = []
        for name in sorted(self.kept, key=lambda name: sum(objective.sets[name].items.costs)):
            own, raced = self.losses.on_all(outcome, [name]), objective.sets[name]
            bound = loss_bound(objective, name, own, self._start, self._settings.confidence)
            loss = raced.difference(own[name], self._start[name]).estimate
            tests.append(SetTest(name, loss, bound, objective.tolerances[name], raced.items.unit))
            if not tests[-1].is_within:
                break
        return Step(alpha, outcome.candidate.name, tuple(tests))

    def domain_losses(self, outcome: Outcome) -> Losses:
        """On all tuning documents."""
        return self.losses.on_all(outcome, self.domain)

    def change(self, losses: Losses) -> float:
        """Of the domain figure against the general model, on all tuning documents."""
        return self.losses.whole.domain_difference(losses, self._start).estimate

    def best_gain(self, passed: Sequence[Step]) -> str | None:
        """The plain mean with the largest gain that is shown, of those that cannot be told apart
        the one nearest to the general model.

        They are looked at from the farthest towards the general model, until one is surely worse
        than the best; bounds are corrected for all that passed (Bonferroni).
        """
        objective, error = self.losses.whole, 1.0 - self._settings.confidence
        found: dict[str, Losses] = {}
        best: str | None = None
        for step in passed:
            own = self.domain_losses(self.outcome_at(step.alpha))
            self.changes[step.name] = self.change(own)
            if gain_bound(objective, own, self._start, 1.0 - error / len(passed)) < 0.0:
                found[step.name] = own
                if best is None or self.changes[step.name] < self.changes[best]:
                    best = step.name
            if best is not None and best != step.name:
                behind = objective.domain_change(own, found[best])
                if behind.interval(self._settings.confidence).low > 0.0:
                    break
        if best is None:
            return None
        level, pairs = self._settings.confidence, max(len(found) - 1, 1)
        tied = [
            name
            for name, own in found.items()
            if name == best or cannot_be_told_apart(objective, own, found[best], level, pairs)
        ]
        return min(tied, key=lambda name: self._distances(passed)[name])

    @staticmethod
    def _distances(steps: Sequence[Step]) -> dict[str, float]:
        return {step.name: abs(step.alpha) for step in steps}

    def all_outcomes(self, steps: Sequence[Step]) -> list[Outcome]:
        """The search's outcomes with what was scored since, and the new plain means; each has a
        domain figure, of a step that failed from a few documents."""
        objective = self.losses.search
        for step in steps:
            outcome = self.outcome_at(step.alpha)
            asked = [test.name for test in step.tests]
            names = [*asked, *self.domain] if step.name in self.changes else asked
            found = dict(self.losses.on_search(outcome, names))
            if not all(len(found.get(name, ())) for name in self.domain):
                found = dict(self.losses.begin(outcome, self.domain, SHOWN_GROUPS))
            new = not outcome.tokens and outcome.candidate.name not in (GENERAL, SPECIALIST)
            self._by_key[outcome.candidate.key] = replace(
                outcome,
                losses=found,
                status="complete" if objective.is_whole(found) else outcome.status,
                tokens=objective.tokens(found) if new else outcome.tokens,
            )
        order = [outcome.candidate.key for outcome in self._outcomes]
        rest = [key for key in self._by_key if key not in set(order)]
        return [self._by_key[key] for key in (*order, *rest)]


def _methods(
    outcomes: Sequence[Outcome], sweep: SweepTests, plain: str | None, num_tried: int
) -> tuple[list[Confirmation], str | None]:
    """What was confirmed, and the best that is to be chosen instead of the plain mean."""
    losses, settings = sweep.losses, sweep._settings
    start = sweep.general.losses
    by_name = {outcome.candidate.name: outcome for outcome in outcomes}
    points = {
        alpha_of(outcome.candidate): outcome.losses
        for outcome in outcomes
        if is_plain(outcome) and outcome.status == "complete"
    }
    methods = [o for o in outcomes if o.status == "complete" and not is_plain(o)]
    at_least = 0.0
    if plain is not None:
        own = losses.on_search(by_name[plain], sweep.domain)
        at_least = losses.search.domain_difference(own, start).estimate
    aside = losses.aside or losses.search
    curve = PlainSweep(losses.search, points)
    few = shortlist(methods, curve, losses.search, start, at_least, aside, settings.finalists)
    num_tests = len(few) if losses.aside is not None else num_tried
    names = [*sweep.domain, *sweep.kept]
    general = losses.on_aside(sweep.general, names)
    confirmations = []
    for finalist in few:
        twin = sweep.outcome_at(round(finalist.match.alpha, 2))
        bound_set = [finalist.match.bound_set] if finalist.match.bound_set else []
        confirmations.append(
            confirm(
                finalist,
                twin.candidate.name,
                aside,
                losses.on_aside(finalist.outcome, names),
                losses.on_aside(twin, [*sweep.domain, *bound_set]),
                general,
                num_tests,
            )
        )
    changes = {
        c.name: sweep.change(sweep.domain_losses(by_name[c.name]))
        for c in confirmations
        if c.is_confirmed
    }
    level = sweep.changes[plain] if plain is not None else 0.0
    better = [name for name, change in changes.items() if change < level]
    sweep.changes.update(changes)
    return confirmations, min(better, key=lambda name: changes[name], default=None)


def is_plain(outcome: Outcome) -> bool:
    """Whether a candidate is a plain mean of the two models, the models themselves included."""
    candidate = outcome.candidate
    if candidate.name in (GENERAL, SPECIALIST):
        return True
    alpha = candidate.parameters.get("alpha")
    is_linear = candidate.config.merge_method == "linear" and list(candidate.parameters) == [
        "alpha"
    ]
    return is_linear and isinstance(alpha, (int, float)) and 0.0 <= alpha <= 1.0
