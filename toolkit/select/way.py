"""What a merge loses on all validation documents, by way of a plain mean that was tested on them.

A finalist was picked for what the search's documents said of it, so only those set aside may speak
of it: a third. But a plain mean beside it was tested on all of them, in an order that was fixed
beforehand, and the two differ little on any document. So what the merge loses is what the plain
mean loses, on all documents, and what the merge loses beyond that, on those set aside.

Reference:
    Cochran 1977, Sampling techniques, section 12.2 (two-phase sampling, difference estimate).
"""

from __future__ import annotations

import numpy as np

from toolkit.search.objective import Losses
from toolkit.search.worker import Outcome
from toolkit.select.validation_losses import ValidationLosses
from toolkit.statistics.change_bound import ChangeBound
from toolkit.statistics.paired import PairedChanges


def can_go_by_way(losses: ValidationLosses, name: str) -> bool:
    """Whether a set can be asked so: not where nothing was set aside, and not of right-or-wrong
    items, whose bound counts the answers themselves."""
    return losses.aside is not None and not losses.whole.sets[name].items.is_bounded


def loss_by_way_of(
    losses: ValidationLosses, name: str, merge: Losses, step: Outcome, general: Outcome
) -> ChangeBound:
    """What a merge loses on a general set.

    Args:
        losses: of the validation documents.
        name: of a set that `can_go_by_way`.
        merge: losses on the documents set aside.
        step: a plain mean that was tested on all.
        general: the general model.
    """
    aside_objective, whole_set = losses.aside, losses.whole.sets[name]
    assert aside_objective is not None  # noqa: S101  (see `can_go_by_way`)
    plain_changes = losses.on_all(step, [name])[name] - losses.on_all(general, [name])[name]
    part_aside = aside_objective.sets[name]
    beyond_plain = merge[name] - losses.on_aside(step, [name])[name]
    spot_by_item = {whole_set.items.ids[index]: spot for spot, index in enumerate(whole_set.order)}
    spots = [spot_by_item[part_aside.items.ids[index]] for index in part_aside.order]
    # Each document set aside speaks for as many as its part stands for.
    # Sums of this are the plain mean's change on all plus the weighted difference on those set
    # aside, and its scatter by group holds that of both.
    moved = np.array(plain_changes)
    moved[spots] += beyond_plain * (sum(whole_set.items.sizes) / sum(part_aside.items.sizes))
    return PairedChanges([whole_set.items.changes([moved], whole_set.order.tolist())]).change()
