"""What the search lowers and what it must keep, from losses on part of the items or on all.

Legend: losses of a candidate are kept by set, in the order of the race, as far as they are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ConfigError, EvaluationError, sentence_end
from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.config import RaceSection
from toolkit.search.raced_set import hasten_cheap_sets, order_for_race, usable_looks
from toolkit.statistics.change_bound import ChangeBound
from toolkit.statistics.interval import normal_quantile, student_quantile
from toolkit.statistics.paired import PairedChanges
from toolkit.statistics.sampled_differences import Difference, combine, is_out, spending
from toolkit.statistics.set_changes import SetChanges

Losses = Mapping[str, NDArray[np.float64]]
"""Losses by set, each a beginning of the set's items in the order of the race."""


def guide_of(specialist: Losses | None, general: Losses | None) -> Losses:
    """How the two models differ on each item of the sets that both are known on in full; merges of
    them differ alike. See `race`."""
    if specialist is None or general is None:
        return {}
    return {
        name: values - general[name]
        for name, values in specialist.items()
        if len(values) == len(general.get(name, ()))
    }


class Objective:
    """Several sets by role, and what candidates are to them.

    Args:
        sets: of all roles.
        weights: of domain sets by name, 1 where not given.
        tolerances: loss accepted on general sets by name.
        tolerance: loss accepted on the others, but for sets that bring one along.
        confidence: of one-sided bounds.
        race: looks and error.
        seed: of the order of items.
        domain_tolerance: loss accepted on each domain set; None where their mean alone counts.
        num_candidates: in all; a lead over the best must withstand a correction for so many.

    Raises:
        EvaluationError: there is no domain set, or no general one.
        ConfigError: a weight or tolerance names no set.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        *,
        weights: Mapping[str, float],
        tolerances: Mapping[str, float],
        tolerance: float,
        confidence: float,
        race: RaceSection,
        seed: int,
        domain_tolerance: float | None = None,
        num_candidates: int = 2,
    ) -> None:
        self._num_rivals = max(num_candidates - 1, 1)
        self.looks = usable_looks(sets, race.looks) if race.enabled else ()
        self.sets = hasten_cheap_sets(
            {item.name: order_for_race(item, self.looks, seed) for item in sets}
        )
        self._error = race.error
        self.confidence = confidence
        for role in ("domain", "general"):
            if not self.names(role):
                raise EvaluationError(
                    f"the validation documents hold no {role} set; give a source of the recipe the "
                    f"role {role} and a validation split."
                )
        bounded = self.names("domain") if domain_tolerance is not None else []
        for key, named_sets, role, names in (
            ("search.weights", weights, "domain", self.names("domain")),
            ("select.tolerances", tolerances, "general", [*self.names("general"), *bounded]),
        ):
            for name in named_sets:
                if name not in names:
                    raise ConfigError(
                        f"{key}.{name}: there is no {role} set of this name"
                        f"{sentence_end(name, names)} "
                        f"There are: {', '.join(names)}."
                    )
        self.weights = {name: weights.get(name, 1.0) for name in self.names("domain")}
        self.tolerance = tolerance
        self.tolerances = {
            # The recipe's word for a set first, then what the set brings along, then what holds for
            # all.
            name: tolerances.get(name, tolerance if set_tolerance is None else set_tolerance)
            for name in self.names("general")
            for set_tolerance in (self.sets[name].items.tolerance,)
        }
        if domain_tolerance is not None:
            self.tolerances |= {name: tolerances.get(name, domain_tolerance) for name in bounded}

    def names(self, role: str) -> list[str]:
        return [name for name, item in self.sets.items() if item.items.role == role]

    @property
    def shown_general(self) -> list[str]:
        """General sets behind the one figure that is shown: those in the unit of the first. Others
        (answers, tasks) have figures of their own, and hold a candidate back all the same."""
        return same_unit([self.sets[name].items for name in self.names("general")])

    @property
    def num_looks(self) -> int:
        """Looks at which something is scored; after the last one all is known."""
        return len(self.looks) + 1

    def tokens(self, losses: Losses) -> int:
        """Tokens behind what is known."""
        return sum(raced.cost(len(losses.get(name, ()))) for name, raced in self.sets.items())

    @property
    def all_tokens(self) -> int:
        return sum(sum(raced.items.costs) for raced in self.sets.values())

    def is_whole(self, losses: Losses) -> bool:
        return all(len(losses.get(name, ())) == len(r.order) for name, r in self.sets.items())

    def figures(self, losses: Losses) -> dict[str, float | None]:
        """The figure of every set on what is known, None where that is nothing."""
        return {
            name: raced.figure(losses[name]) if len(losses.get(name, ())) else None
            for name, raced in self.sets.items()
        }

    def domain_difference(
        self,
        losses: Losses,
        reference: Losses,
        guide: Losses | None = None,
        quantile: float = 0.0,
    ) -> Difference:
        """The weighted domain figure minus a reference's, on what both know."""
        set_differences = [
            self._difference(name, losses, reference, guide, quantile) for name in self.weights
        ]
        return combine(set_differences, list(self.weights.values()))

    def _difference(
        self,
        name: str,
        losses: Losses,
        reference: Losses,
        guide: Losses | None,
        quantile: float = 0.0,
    ) -> Difference:
        raced, known = self.sets[name], (guide or {}).get(name)
        # A guide stands in for documents not seen yet, so it must be known of every one.
        whole = known is not None and len(known) == len(raced.order)
        return raced.difference(losses[name], reference[name], known if whole else None, quantile)

    def change(
        self, weights: Mapping[str, float], losses: Losses, reference: Losses
    ) -> ChangeBound:
        """What is concluded of a candidate scored in full: its weighted figure minus a reference's.

        Args:
            weights: of each set by name: `objective.weights` for the domain, `{name: 1.0}` for one.
            losses: of the candidate, of all items of these sets.
            reference: of what it is compared with, likewise.
        """
        return PairedChanges(self._parts(weights, losses, reference)).change()

    def _parts(
        self, weights: Mapping[str, float], losses: Losses, reference: Losses
    ) -> list[SetChanges]:
        set_changes = []
        for name, weight in weights.items():
            raced = self.sets[name]
            moved = losses[name] - reference[name]
            set_changes.append(raced.items.changes([moved], raced.order.tolist(), weight=weight))
        return set_changes

    def set_change(self, name: str, losses: Losses, reference: Losses) -> ChangeBound:
        """The same on one set."""
        return self.change({name: 1.0}, losses, reference)

    def domain_change(self, losses: Losses, reference: Losses) -> ChangeBound:
        """The same on the domain sets, weighted."""
        return self.change(self.weights, losses, reference)

    def lead(
        self, losses: Losses, reference: Losses, matched: str | None, slope: float
    ) -> ChangeBound:
        """The change on the domain sets, less what the reference would change along a slope to lose
        as much on a general set.

        Args:
            losses, reference: of all items of these sets.
            matched: the general set; None where nothing has to be made up for.
            slope: change of the domain figure for each unit lost on it.
        """
        weight_sum = sum(self.weights.values())
        set_changes = self._parts(
            {n: w / weight_sum for n, w in self.weights.items()}, losses, reference
        )
        if matched is not None and slope != 0.0:
            set_changes += self._parts({matched: -slope}, losses, reference)
        return PairedChanges(set_changes, are_factors=True).change()

    def estimates(
        self, losses: Losses, references: Sequence[Losses], guide: Losses | None = None
    ) -> dict[str, float]:
        """The figure that full scoring would give each set, as far as one can know.

        Where only part is known, a reference's figure on all plus the difference on that part:
        merges are alike on the same documents, so this is far nearer than the part's own. Of
        several references the one most alike, whose difference varies least, is taken.

        Args:
            losses: of the candidate.
            references: of candidates scored in full, one at least.
            guide: see `guide_of`.
        """
        figures_found: dict[str, float] = {}
        for name, raced in self.sets.items():
            own_losses = losses.get(name, np.zeros(0))
            if len(own_losses) == len(raced.order):
                figures_found[name] = raced.figure(own_losses)
            elif len(own_losses):
                reference_pairs = [
                    (self._difference(name, losses, other, guide), other) for other in references
                ]
                difference, nearest = min(reference_pairs, key=lambda pair: pair[0].still_open)
                figures_found[name] = raced.figure(nearest[name]) + difference.estimate
        return figures_found

    def domain(self, figures: Mapping[str, float]) -> float:
        """The weighted mean of the domain sets' figures."""
        weight_sum = sum(self.weights.values())
        return sum(weight * figures[name] for name, weight in self.weights.items()) / weight_sum

    def general(self, figures: Mapping[str, float]) -> float:
        """The plain mean of the figures of `shown_general`; NaN where one is not known."""
        general_names = self.shown_general
        if any(name not in figures for name in general_names):
            return math.nan
        return sum(figures[name] for name in general_names) / len(general_names)

    def general_loss_bound(
        self,
        losses: Losses,
        general: Losses,
        num_tests: int = 1,
        guide: Losses | None = None,
    ) -> float:
        """Upper bound of the loss on general sets: at most `tolerance` where all are within theirs.

        Sets of which nothing is known say nothing; where that is so of all, the bound is without
        limit. Each set must hold by itself, so no correction for their number is due (an
        intersection of hypotheses is rejected only with all of them).

        Args:
            losses: of the candidate.
            general: of the general model.
            num_tests: candidates that are judged like this at once (Bonferroni).
            guide: see `guide_of`; of no effect on what is known in full.

        Reference:
            Berger 1982, Multiparameter hypothesis testing and acceptance sampling.
        """
        loss_bounds = self.loss_bounds(losses, general, num_tests, guide)
        beyond_tolerances = [bound - self.tolerances[name] for name, bound in loss_bounds.items()]
        return max(beyond_tolerances, default=math.inf) + self.tolerance

    def loss_bounds(
        self,
        losses: Losses,
        general: Losses,
        num_tests: int = 1,
        guide: Losses | None = None,
    ) -> dict[str, float]:
        """Upper bound of the loss on each general set of which something is known, in its unit."""
        bound_by_set = {}
        for name in self.tolerances:
            if len(losses.get(name, ())) == 0:
                continue
            # Of what is known in full, the bound that the choice itself goes by; of a part, a
            # linearized one, which is enough to rank what was dropped.
            level = 1.0 - (1.0 - self.confidence) / num_tests
            if self.sets[name].is_whole(losses[name]) and self.sets[name].is_whole(general[name]):
                bound_by_set[name] = self.set_change(name, losses, general).upper_bound(level)
            else:
                difference = self._difference(name, losses, general, guide)
                bound_by_set[name] = difference.upper_bound(level)
        return bound_by_set

    def beyond_tolerances(
        self, losses: Losses, general: Losses, guide: Losses | None = None
    ) -> dict[str, float]:
        """How far beyond its tolerance each general set's bound is expected after full scoring,
        below 0 within; sets of which nothing is known are left out."""
        beyond_by_set = {}
        for name, limit in self.tolerances.items():
            if self.sets[name].is_whole(losses.get(name, np.zeros(0))):
                change = self.set_change(name, losses, general)
                beyond_by_set[name] = change.upper_bound(self.confidence) - limit
            elif len(losses.get(name, ())):
                difference = self._difference(name, losses, general, guide)
                # Degrees of freedom as after full scoring, which is what is foreseen here. One
                # document alone says nothing of a spread.
                quantile = student_quantile(self.confidence, max(difference.total - 1, 1))
                reach = quantile * math.sqrt(difference.in_the_end) if difference.seen > 1 else 0.0
                beyond_by_set[name] = difference.estimate + reach - limit
        return beyond_by_set

    def beyond_tolerance(
        self, losses: Losses, general: Losses, guide: Losses | None = None
    ) -> float:
        """The farthest beyond of all, below 0 within; 0 where nothing is known."""
        return max(self.beyond_tolerances(losses, general, guide).values(), default=0.0)

    def is_behind(
        self, losses: Losses, best: Losses, guide: Losses | None = None, *, surely: bool = False
    ) -> bool:
        """Whether full scoring would surely not show a candidate to be better; see `race`.

        Args:
            losses: of the candidate.
            best: of what it is compared with.
            guide: see `guide_of`.
            surely: better by an interval that is corrected for all candidates; else by its figure.
        """
        if not self.looks:
            return False
        # Two-sided, as intervals are shown, and shared by all rivals (Bonferroni).
        needed_lead = normal_quantile(1.0 - (1.0 - self.confidence) / (2.0 * self._num_rivals))
        needed_lead = needed_lead if surely else 0.0
        difference = self.domain_difference(losses, best, guide, needed_lead)
        return is_out(difference, 0.0, needed_lead, spending(self._error, len(self.looks)))

    def loses_too_much(
        self, name: str, losses: Losses, general: Losses, guide: Losses | None = None
    ) -> bool:
        """Whether full scoring would surely not let a candidate stay within a set's tolerance."""
        if not self.looks or len(losses.get(name, ())) == 0:
            return False
        # One wrong word of any set loses a candidate, so all of them share the error.
        error_spent = spending(self._error, len(self.looks)) / len(self.tolerances)
        quantile = student_quantile(self.confidence, max(self.sets[name].num_groups - 1, 1))
        difference = self._difference(name, losses, general, guide, quantile)
        return is_out(difference, self.tolerances[name], quantile, error_spent)


def same_unit(sets: Sequence[EvaluationSet]) -> list[str]:
    """Names of those in the unit of the first."""
    return [item.name for item in sets if item.unit == sets[0].unit]
