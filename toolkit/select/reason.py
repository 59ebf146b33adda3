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
    level = f"{confidence:.0%} bound"
    passed = passed_steps(steps)
    climbed = _climbed(steps, losses, level)
    mine = next((c for c in confirmations if c.name == chosen), None)
    if mine is not None:
        return (
            f"{climbed} {chosen} stays within what general sets may lose too ({where_of(losses)}), "
            f"gains more (domain {changes[chosen]:+.4f} on validation items) than any "
            "plain mean that does, and more than the plain mean of the same general loss."
        )
    if any(step.name == chosen for step in passed):
        top = passed[0].name == chosen
        which = "the farthest of them" if top else "the best of them on the domain, or tied with it"
        gain = f"domain {changes[chosen]:+.4f} on validation items"
        return f"{climbed} {chosen} is {which} ({gain}) and is chosen."
    if not passed:
        return f"{climbed} The general model is kept."
    best = min((changes[step.name] for step in passed if step.name in changes), default=0.0)
    return (
        f"{climbed} None of these is shown to gain on the domain (at best {best:+.4f} on "
        "validation items). The general model is kept."
    )


def describe_step(step: LadderStep) -> str:
    """What became of one step."""
    failed = next((test for test in step.tests if not test.is_within), None)
    if failed is None:
        return "stays within what general sets may lose"
    return (
        f"{failed.name} may lose {failed.bound:.3g} {failed.unit}, {failed.tolerance:g} is "
        "tolerated"
    )


def _climbed(steps: Sequence[LadderStep], losses: ValidationLosses, level: str) -> str:
    where = f"on all general validation items ({count_items(losses.whole, ('general',))})"
    passed = passed_steps(steps)
    failed = min((s for s in steps if not s.is_within), key=lambda s: abs(s.alpha), default=None)
    stopped = ""
    if failed is not None:
        stopped = f"{failed.name} is not: {describe_step(failed)} ({level})"
    if not passed:
        return (
            "The plain mean was tested from the general model upwards: no step is shown to stay "
            f"within what general sets may lose {where}; {stopped}."
        )
    return (
        f"The plain mean was tested from the general model upwards: {passed[0].name} is shown to "
        f"stay within what general sets may lose {where}{'; ' if stopped else ''}{stopped}."
    )


def where_of(losses: ValidationLosses) -> str:
    """The documents that other methods were confirmed on."""
    if losses.aside is None:
        return "on the search's own documents, corrected for all candidates"
    return f"on validation items that the search never saw ({count_items(losses.aside)})"


def count_items(objective: Objective, roles: Sequence[str] = ("domain", "general")) -> str:
    """Items by set: sets that are only watched decide nothing and are not counted."""
    sets = [raced.items for raced in objective.sets.values() if raced.items.role in roles]
    return ", ".join(f"{items.name} {len(items)}" for items in sets)


def sweep_verdict(
    chosen: str, confirmations: Sequence[Confirmation], losses: ValidationLosses
) -> SweepVerdict:
    """Whether another method beat the plain sweep, at the same general loss; said of the chosen
    merge alone."""
    mine = next((c for c in confirmations if c.name == chosen), None)
    nearest = mine or min(confirmations, key=lambda c: c.lead.high, default=None)
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
    figures = f"{lead_estimate} ({lead_ends}, {where_of(losses)})"
    if mine is not None:
        sentence = (
            f"{mine.name} beats the plain mean of the same general loss, {mine.plain}, on the "
            f"domain: {figures}."
        )
    else:
        failed = [
            word
            for word, held in (
                ("to do better than the plain mean of the same general loss", nearest.leads),
                ("to stay within what general sets may lose", nearest.is_within),
                ("to gain on the domain", nearest.gains),
            )
            if not held
        ]
        what = " or ".join(failed) or "to gain more than the chosen merge"
        sentence = (
            f"No method is shown to beat the plain sweep: {nearest.name} is not shown {what}; "
            f"against {nearest.plain} at the same general loss {figures}."
        )
    return SweepVerdict(
        difference=lead.estimate,
        low=_finite(lead.low) if mine is not None else None,
        high=_finite(lead.high) if mine is not None else None,
        sentence=sentence,
    )


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
