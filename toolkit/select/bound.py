"""The bounds that decide, in one place."""

from __future__ import annotations

from toolkit.search.objective import Losses, Objective


def loss_bound(
    objective: Objective, name: str, losses: Losses, general: Losses, confidence: float
) -> float:
    """One-sided upper bound of a candidate's loss on a general set, in the set's unit."""
    return objective.set_change(name, losses, general).upper_bound(confidence)


def gain_bound(objective: Objective, losses: Losses, general: Losses, confidence: float) -> float:
    """One-sided upper bound of a candidate's change on the domain; below 0 a gain is shown."""
    return objective.domain_change(losses, general).upper_bound(confidence)
