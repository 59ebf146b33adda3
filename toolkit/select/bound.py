"""The bounds that decide, in one place."""

from __future__ import annotations

from toolkit.search.objective import Losses, Objective, upper_bound


def loss_bound(
    objective: Objective, name: str, losses: Losses, general: Losses, confidence: float
) -> float:
    """One-sided upper bound of a candidate's loss on a general set, in the set's unit."""
    raced = objective.sets[name]
    return upper_bound(raced.difference(losses[name], general[name]), confidence)


def gain_bound(objective: Objective, losses: Losses, general: Losses, confidence: float) -> float:
    """One-sided upper bound of a candidate's change on the domain; below 0 a gain is shown."""
    return upper_bound(objective.domain_difference(losses, general), confidence)
