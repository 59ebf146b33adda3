"""Plain means tested on all validation documents, and the best gain among those that pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from toolkit.search.objective import Losses
from toolkit.search.race import SHOWN_GROUPS
from toolkit.search.space import (
    GENERAL,
    Candidate,
    alphas_by_name,
    find_sweep_end,
    is_endpoint,
    sweep_point,
)
from toolkit.search.worker import Outcome
from toolkit.select.bound import gain_bound, loss_bound
from toolkit.select.candidates import cannot_be_told_apart
from toolkit.select.ladder import LadderStep, SetTest
from toolkit.select.validation_losses import ValidationLosses


@dataclass(frozen=True)
class DecisionSettings:
    """How it is decided.

    Attributes:
        alphas: of the sweep.
        refine: halvings between the last step that passes and the first that fails.
        finalists: merges to be confirmed, at most.
        confidence: of every bound.
        plain_mean: the candidate of an α.
    """

    alphas: tuple[float, ...]
    refine: int
    finalists: int
    confidence: float
    plain_mean: Callable[[float], Candidate] = sweep_point


class SweepTests:
    """Plain means on all validation documents.

    Args:
        outcomes: of the search.
        losses: scores what is asked for.
        settings: of the decision.
    """

    def __init__(
        self, outcomes: Sequence[Outcome], losses: ValidationLosses, settings: DecisionSettings
    ) -> None:
        self.settings = settings
        self.losses = losses
        self._outcomes = list(outcomes)
        self._by_key = {outcome.candidate.key: outcome for outcome in outcomes}
        by_name = {outcome.candidate.name: outcome for outcome in outcomes}
        self.general, self.specialist = by_name[GENERAL], find_sweep_end(by_name)
        alphas = alphas_by_name(outcome.candidate for outcome in outcomes)
        is_end = self.specialist.candidate.name in alphas
        # Where training did not start from the general model, the specialist is not on the sweep.
        self.end = self.specialist if is_end else by_name[self.settings.plain_mean(1.0).name]
        self.changes: dict[str, float] = {}
        whole = losses.whole
        self.domain, self.kept = list(whole.weights), list(whole.tolerances)
        self._start = losses.on_all(self.general, [*self.domain, *self.kept])

    def outcome_at(self, alpha: float) -> Outcome:
        """The plain mean of this α, one of the search's where it was tried."""
        candidate = self.end.candidate if alpha == 1.0 else self.settings.plain_mean(alpha)
        if alpha == 0.0:
            return self.general
        # Not tried by the search: it begins with nothing known, and is merged once a score of it is
        # asked for.
        if candidate.key not in self._by_key:
            # On a straight line between two models distance is in proportion to α, so nothing has
            # to be merged to know it.
            distance = abs(alpha) * self.end.distance
            # After all that were tried: of a search that was interrupted orders have gaps.
            order = 1 + max((other.order for other in self._by_key.values()), default=-1)
            outcome = Outcome(candidate, "dropped", {}, distance, 0, 0.0, 0.0, order)
            self._by_key[candidate.key] = outcome
        return self._by_key[candidate.key]

    def usable_alphas(self) -> list[float]:
        """Of the sweep, the specialist among them, without those whose merge failed."""
        alphas = [alpha for alpha in (*self.settings.alphas, 1.0) if alpha > 0.0]
        return [alpha for alpha in alphas if self.outcome_at(alpha).status != "failed"]

    def test(self, alpha: float) -> LadderStep:
        """Set by set, the cheapest first, up to the first that fails."""
        outcome, objective = self.outcome_at(alpha), self.losses.whole
        tests: list[SetTest] = []
        for name in sorted(self.kept, key=lambda name: sum(objective.sets[name].items.costs)):
            set_losses, raced = self.losses.on_all(outcome, [name]), objective.sets[name]
            bound = loss_bound(objective, name, set_losses, self._start, self.settings.confidence)
            loss = raced.difference(set_losses[name], self._start[name]).estimate
            tests.append(SetTest(name, loss, bound, objective.tolerances[name], raced.items.unit))
            if not tests[-1].is_within:
                break
        return LadderStep(alpha, outcome.candidate.name, tuple(tests))

    def domain_losses(self, outcome: Outcome) -> Losses:
        """On all validation documents."""
        return self.losses.on_all(outcome, self.domain)

    def change(self, losses: Losses) -> float:
        """Of the domain figure against the general model, on all validation documents."""
        return self.losses.whole.domain_difference(losses, self._start).estimate

    def best_gain(self, passed: Sequence[LadderStep]) -> str | None:
        """The plain mean with the largest gain that is shown, of those that cannot be told apart
        the one nearest to the general model.

        They are looked at from the farthest towards the general model, until one is surely worse
        than the best; bounds are corrected for all that passed (Bonferroni).
        """
        objective, error = self.losses.whole, 1.0 - self.settings.confidence
        losses_by_name: dict[str, Losses] = {}
        best_name: str | None = None
        for step in passed:
            step_losses = self.domain_losses(self.outcome_at(step.alpha))
            self.changes[step.name] = self.change(step_losses)
            if gain_bound(objective, step_losses, self._start, 1.0 - error / len(passed)) < 0.0:
                losses_by_name[step.name] = step_losses
                if best_name is None or self.changes[step.name] < self.changes[best_name]:
                    best_name = step.name
            # Gains along the sweep rise to one top. Once a step is surely worse than the best,
            # those still nearer to the general model are too, and are not scored.
            if best_name is not None and best_name != step.name:
                change_to_best = objective.domain_change(step_losses, losses_by_name[best_name])
                if change_to_best.interval(self.settings.confidence).low > 0.0:
                    break
        if best_name is None:
            return None
        level, pairs = self.settings.confidence, max(len(losses_by_name) - 1, 1)
        tied_names = [
            name
            for name, step_losses in losses_by_name.items()
            if name == best_name
            or cannot_be_told_apart(objective, step_losses, losses_by_name[best_name], level, pairs)
        ]
        # Of gains that are alike the least moved model is the safer one.
        distances = {step.name: abs(step.alpha) for step in passed}
        return min(tied_names, key=lambda name: distances[name])

    def nearest_passed(self, passed: Sequence[LadderStep], alpha: float) -> Outcome | None:
        """Of the plain means that are within every tolerance, the nearest to an α."""
        if not passed:
            return None
        return self.outcome_at(min((step.alpha for step in passed), key=lambda a: abs(a - alpha)))

    def all_outcomes(self, steps: Sequence[LadderStep]) -> list[Outcome]:
        """The search's outcomes with what was scored since, and the new plain means; each has a
        domain figure, of a step that failed from a few documents."""
        objective = self.losses.search
        for step in steps:
            outcome = self.outcome_at(step.alpha)
            asked_names = [test.name for test in step.tests]
            names = list(objective.sets) if step.name in self.changes else asked_names
            known_losses = dict(self.losses.on_search(outcome, names))
            if not all(len(known_losses.get(name, ())) for name in self.domain):
                known_losses = dict(self.losses.begin(outcome, self.domain, SHOWN_GROUPS))
            # Tokens of what the search tried are counted there already.
            is_new = not outcome.tokens and not is_endpoint(outcome.candidate.name)
            self._by_key[outcome.candidate.key] = replace(
                outcome,
                losses=known_losses,
                status="complete" if objective.is_whole(known_losses) else outcome.status,
                tokens=objective.tokens(known_losses) if is_new else outcome.tokens,
            )
        # The search's own first and in its order, so that tables look the same whatever the ladder
        # added.
        keys_searched = [outcome.candidate.key for outcome in self._outcomes]
        keys_added = [key for key in self._by_key if key not in set(keys_searched)]
        return [self._by_key[key] for key in (*keys_searched, *keys_added)]
