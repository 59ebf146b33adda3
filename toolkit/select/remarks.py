"""What should be known of a choice: what the sets that it was made by cannot show."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.objective import Losses, Objective
from toolkit.search.space import GENERAL
from toolkit.select.decide import Decision
from toolkit.select.holdout import Parts
from toolkit.select.validation_losses import ValidationLosses
from toolkit.statistics.power import power_of

SEEN_BY_BEST = (
    "The specialist is the best of its training's states by some of these validation documents "
    "(train.use: best), so what is found on them flatters it a little; test documents were not "
    "seen."
)


def remarks_on(
    decision: Decision,
    losses: ValidationLosses,
    parts: Parts,
    test: Sequence[EvaluationSet],
    *,
    confidence: float,
    is_best_state: bool,
) -> list[str]:
    """Sentences on what the figures of a choice cannot show.

    Args:
        decision: what was chosen, and on what grounds.
        losses: losses on the validation documents.
        parts: the validation sets in two.
        test: the test sets.
        confidence: confidence of the bounds that decide.
        is_best_state: whether the specialist was chosen among its training's states by some of the
            validation documents.
    """
    by_name = {outcome.candidate.name: outcome for outcome in decision.outcomes}
    # Where nothing was chosen, the safest step of the sweep shows how a merge scatters.
    merge = decision.chosen if decision.choice.any_merge else by_name[decision.steps[0].name]
    kept_sets = list(losses.whole.tolerances)
    remarks = describe_small_sets(
        losses.whole,
        losses.on_all(merge, kept_sets),
        losses.on_all(by_name[GENERAL], kept_sets),
        confidence,
    )
    # Where nothing was confirmed it does not matter on which documents it would have been.
    if parts.note and decision.confirmations:
        remarks.append(f"Confirmed on the search's own documents: {parts.note}.")
    remarks += [f"{item.name}: {item.note}." for item in test if item.note]
    if is_best_state:
        remarks.append(SEEN_BY_BEST)
    return remarks


def describe_small_sets(
    objective: Objective, losses: Losses, start: Losses, confidence: float
) -> list[str]:
    """Sentences on sets that cannot see their tolerance, as a merge scatters on them.

    Args:
        objective: all validation documents.
        losses: losses of the merge on them.
        start: losses of the general model on them.
        confidence: confidence of the bounds that decide.
    """
    set_powers = [
        power_of(
            name,
            objective.sets[name].items.role,
            objective.sets[name].items.unit,
            len(objective.sets[name].items),
            limit,
            objective.set_change(name, losses, start),
            confidence,
        )
        for name, limit in objective.tolerances.items()
    ]
    return [power.sentence for power in set_powers if not power.is_enough]
