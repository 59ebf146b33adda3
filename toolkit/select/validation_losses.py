"""Losses of candidates on the validation documents, scored set by set as the decision asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.search.objective import Losses, Objective
from toolkit.search.run import Scorer
from toolkit.search.worker import Outcome
from toolkit.select.candidates import arranged, by_item, merged_parts


@dataclass(frozen=True)
class ValidationLosses:
    """What is known of candidates on the search's documents, on those set aside, and on all.

    Args:
        search: objective that the search used.
        aside: of the documents that it did not see; None where none were set aside.
        whole: of all validation documents.
        scorer: scores what is missing.
    """

    search: Objective
    aside: Objective | None
    whole: Objective
    scorer: Scorer

    def on_search(self, outcome: Outcome, names: Sequence[str]) -> Losses:
        """Losses of these sets on the search's own documents, and what it scored of others."""
        counts = _sizes_of(self.search, names)
        return self.scorer.score(
            outcome, self.search, part="search", known=outcome.losses, counts=counts
        )

    def begin(self, outcome: Outcome, names: Sequence[str], groups: int) -> Losses:
        """The same from a few of the search's documents of each set, and what else is known."""
        sets = [self.search.sets[name] for name in names]
        # Groups are numbered in the order of the race: as many items as come before a number are of
        # the groups below it.
        counts = {r.items.name: int(np.searchsorted(r.groups, groups)) for r in sets}
        return self.scorer.score(
            outcome, self.search, part="search", known=outcome.losses, counts=counts
        )

    def on_aside(self, outcome: Outcome, names: Sequence[str]) -> Losses:
        """Losses of these sets on the documents set aside, or the search's own where none were."""
        if self.aside is None:
            return self.on_search(outcome, names)
        counts = _sizes_of(self.aside, names)
        return self.scorer.score(outcome, self.aside, part="confirm", counts=counts)

    def on_all(self, outcome: Outcome, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Losses of these sets on all validation documents."""
        search_losses = self.on_search(outcome, names)
        if self.aside is None:
            return {name: np.asarray(search_losses[name]) for name in names}
        # Each part has an order of its own, so losses go from the two parts to the whole by the
        # names of items.
        losses_by_item = merged_parts(
            by_item(self.search, search_losses), by_item(self.aside, self.on_aside(outcome, names))
        )
        return arranged(self.whole, {name: losses_by_item[name] for name in names})


def _sizes_of(objective: Objective, names: Sequence[str]) -> dict[str, int]:
    return {name: len(objective.sets[name].order) for name in names}
