"""The choice in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolkit.search.objective import Objective
from toolkit.select.ladder import LadderStep, passed_steps
from toolkit.select.results import SweepVerdict
from toolkit.select.rivals import Confirmation
from toolkit.select.validation_losses import ValidationLosses
from toolkit.statistics.interval import decimals


def reason_of(
    chosen: str,
    steps: Sequence[LadderStep],
    changes: Mapping[str, float],
    confirmations: Sequence[Confirmation],
    losses: ValidationLosses,
    confidence: float,
) -> str:
    """Why this candidate.

    Args:
        chosen: its name.
        steps: plain means as they were tested.
        changes: domain changes on all validation documents, by name.
        confirmations: of other methods.
        losses: of the validation documents.
        confidence: of the bounds.
    """
    bound_words = f"{confidence:.0%} bound"
    steps_passed = passed_steps(steps)
    climbed = _climbed(steps, losses, bound_words)
    # Plain means are tested, other methods confirmed: only one of the two can name the choice.
    own_confirmation = next((c for c in confirmations if c.name == chosen), None)
    if own_confirmation is not None:
        return (
            f"{climbed} {chosen} stays within what {name_held_sets(losses.whole)} may lose too "
            f"({where_of(losses)}), gains more (domain {changes[chosen]:+.4f} on validation items) "
            "than any plain mean that does, and more than the plain mean of the same general loss."
        )
    if any(step.name == chosen for step in steps_passed):
        top = steps_passed[0].name == chosen
        which = "the farthest of them" if top else "the best of them on the domain, or tied with it"
        gain_words = f"domain {changes[chosen]:+.4f} on validation items"
        return f"{climbed} {chosen} is {which} ({gain_words}) and is chosen."
    if not steps_passed:
        return f"{climbed} The general model is kept."
    best = min((changes[step.name] for step in steps_passed if step.name in changes), default=0.0)
    return (
        f"{climbed} None of these is shown to gain on the domain (at best {best:+.4f} on "
        "validation items). The general model is kept."
    )


def name_held_sets(objective: Objective) -> str:
    """What is held by a tolerance: general sets, and domain sets where the recipe says so."""
    has_domain_sets = objective.tolerances.keys() & objective.weights.keys()
    return "general and domain sets" if has_domain_sets else "general sets"


def describe_step(step: LadderStep, held_sets: str) -> str:
    """What became of one step.

    Args:
        step: the plain mean that was tested.
        held_sets: what it was tested on, in words; see `name_held_sets`.
    """
    failed_test = next((test for test in step.tests if not test.is_within), None)
    if failed_test is None:
        return f"stays within what {held_sets} may lose"
    return (
        f"{failed_test.name} may lose {_above(failed_test.bound, failed_test.tolerance)} "
        f"{failed_test.unit}, {failed_test.tolerance:g} is tolerated"
    )


def _above(bound: float, tolerance: float) -> str:
    """A bound with as many digits as show that it lies above a tolerance.

    >>> _above(0.1273, 0.1), _above(0.10004, 0.1), _above(0.1000000000004, 0.1)
    ('0.127', '0.10004', '0.1000000000004')
    """
    texts = (f"{bound:.{digits}g}" for digits in range(3, 18))
    return next((text for text in texts if float(text) > float(f"{tolerance:g}")), str(bound))


def _climbed(steps: Sequence[LadderStep], losses: ValidationLosses, level: str) -> str:
    held_sets = name_held_sets(losses.whole)
    roles = ("general",) if held_sets == "general sets" else ("domain", "general")
    which_words = held_sets.removesuffix(" sets")
    where_words = f"on all {which_words} validation items ({count_items(losses.whole, roles)})"
    steps_passed = passed_steps(steps)
    failed = min((s for s in steps if not s.is_within), key=lambda s: abs(s.alpha), default=None)
    stop_words = ""
    if failed is not None:
        stop_words = f"{failed.name} is not: {describe_step(failed, held_sets)} ({level})"
    if not steps_passed:
        return (
            "The plain mean was tested from the general model upwards: no step is shown to stay "
            f"within what {held_sets} may lose {where_words}; {stop_words}."
        )
    return (
        f"The plain mean was tested from the general model upwards: {steps_passed[0].name} is "
        f"shown to stay within what {held_sets} may lose "
        f"{where_words}{'; ' if stop_words else ''}{stop_words}."
    )


def where_of(losses: ValidationLosses) -> str:
    """The documents that other methods were confirmed on."""
    if losses.aside is None:
        return "on the search's own documents, corrected for all candidates"
    return f"on validation items that the search never saw ({count_items(losses.aside)})"


def count_items(objective: Objective, roles: Sequence[str] = ("domain", "general")) -> str:
    """Items by set: sets that are only watched decide nothing and are not counted."""
    role_sets = [raced.items for raced in objective.sets.values() if raced.items.role in roles]
    return ", ".join(f"{items.name} {len(items)}" for items in role_sets)


def sweep_verdict(
    chosen: str, confirmations: Sequence[Confirmation], losses: ValidationLosses
) -> SweepVerdict:
    """Whether another method beat the plain sweep, at the same general loss; said of the chosen
    merge alone."""
    own_confirmation = next((c for c in confirmations if c.name == chosen), None)
    nearest = own_confirmation or min(confirmations, key=lambda c: c.lead.high, default=None)
    if nearest is None:
        return SweepVerdict(
            difference=None,
            low=None,
            high=None,
            sentence="No other method promised more than the plain mean of the same general loss "
            "and the chosen one.",
        )
    lead = nearest.lead
    lead_estimate, lead_ends = decimals(lead.estimate, sign="+"), lead.ends(sign="+")
    figure_words = f"{lead_estimate} ({lead_ends}, {where_of(losses)})"
    if own_confirmation is not None:
        sentence = (
            f"{own_confirmation.name} beats the plain mean of the same general loss, "
            f"{own_confirmation.plain}, on the domain: {figure_words}."
        )
    else:
        failed_words = [
            word
            for word, held in (
                ("to do better than the plain mean of the same general loss", nearest.leads),
                (
                    f"to stay within what {name_held_sets(losses.whole)} may lose",
                    nearest.is_within,
                ),
                ("to gain on the domain", nearest.gains),
            )
            if not held
        ]
        failure_words = " or ".join(failed_words) or "to gain more than the chosen merge"
        sentence = (
            f"No method is shown to beat the plain sweep: {nearest.name} is not shown "
            f"{failure_words}; against {nearest.plain} at the same general loss {figure_words}."
        )
    return SweepVerdict(
        difference=lead.estimate,
        low=_finite(lead.low) if own_confirmation is not None else None,
        high=_finite(lead.high) if own_confirmation is not None else None,
        sentence=sentence,
    )


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
