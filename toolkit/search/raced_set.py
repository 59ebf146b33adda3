"""An evaluation set in the order of the race, and what is known of it after each look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluate.sets import EvaluationSet
from toolkit.statistics.sampled_differences import (
    MIN_GROUPS,
    Difference,
    guided_difference,
    paired_difference,
)
from toolkit.statistics.seeds import named_seed


@dataclass(frozen=True)
class RacedSet:
    """A set in the order of the race.

    Attributes:
        items: the set itself.
        order: its item indices, the groups in random order and each group together.
        groups: number of each item's group in that order.
        cuts: items known after each look, all of them at the last.
    """

    items: EvaluationSet
    order: NDArray[np.intp]
    groups: NDArray[np.intp]
    cuts: tuple[int, ...]

    @property
    def num_groups(self) -> int:
        return int(self.groups[-1]) + 1

    def sizes(self, count: int) -> NDArray[np.float64]:
        return np.asarray(self.items.sizes, dtype=np.float64)[self.order[:count]]

    def cost(self, count: int) -> int:
        """Tokens of the first items."""
        return int(np.asarray(self.items.costs)[self.order[:count]].sum())

    def difference(
        self,
        losses: NDArray[np.float64],
        reference: NDArray[np.float64],
        guide: NDArray[np.float64] | None = None,
        quantile: float = 0.0,
    ) -> Difference:
        """The candidate's figure minus the reference's on what both know; with a guide, of all
        items, what full scoring would show as the difference (see `guided_difference`)."""
        count = min(len(losses), len(reference))
        if guide is not None and count:
            return guided_difference(
                losses[:count],
                reference[:count],
                guide,
                self.sizes(len(self.order)),
                self.groups,
                self.items.scale,
                quantile,
            )
        return paired_difference(
            losses[:count],
            reference[:count],
            self.sizes(count),
            self.groups[:count],
            self.num_groups,
            self.items.scale,
        )

    def is_whole(self, losses: NDArray[np.float64]) -> bool:
        """Whether these are the losses of all items."""
        return len(losses) == len(self.order)

    def figure(self, losses: NDArray[np.float64]) -> float:
        return self.items.figure(losses, self.order[: len(losses)].tolist())


def order_for_race(items: EvaluationSet, looks: Sequence[float], seed: int) -> RacedSet:
    # By hash of the group's name: sets over the same documents then come in the same order.
    group_names = sorted(set(items.groups), key=lambda name: (named_seed(seed, "race", name), name))
    number_by_group = {name: number for number, name in enumerate(group_names)}
    item_groups = np.array([number_by_group[group] for group in items.groups], dtype=np.intp)
    order = np.argsort(item_groups, kind="stable").astype(np.intp)
    group_of_item = item_groups[order]
    # What is only watched drops nobody, so it waits for the end, when all is scored.
    if items.role == "watch":
        looks = [0.0] * len(looks)
    # Fewer documents than anything can be concluded from would be scored for nothing; one more is
    # needed for the guide's slope.
    # Rounded before the ceiling: 0.07 · 100 is a little above 7, and would be 8 documents.
    group_counts = [math.ceil(round(look * len(group_names), 9)) for look in looks]
    group_counts = [
        max(count, MIN_GROUPS + 1) if count >= MIN_GROUPS else 0 for count in group_counts
    ]
    cuts = [int(np.searchsorted(group_of_item, count)) for count in group_counts]
    return RacedSet(items, order, group_of_item, (*cuts, len(order)))


def hasten_cheap_sets(sets: dict[str, RacedSet]) -> dict[str, RacedSet]:
    """General sets are known in full from the second look on where that costs no more than the
    domain has cost so far: then it is certain what they say, for little."""
    looks = range(1, max(len(raced.cuts) for raced in sets.values()) - 1)
    for look in looks:
        domain_cost = sum(r.cost(r.cuts[look]) for r in sets.values() if r.items.role == "domain")
        for name, raced in sets.items():
            if raced.items.role == "general" and raced.cost(len(raced.order)) <= domain_cost:
                # Looks before this one keep their cuts; from it on the set is known in full.
                cuts = (*raced.cuts[:look], *[len(raced.order)] * (len(raced.cuts) - look))
                sets[name] = replace(raced, cuts=cuts)
    return sets


def usable_looks(sets: Sequence[EvaluationSet], looks: Sequence[float]) -> tuple[float, ...]:
    """Looks at which enough documents of each domain set are known to conclude anything."""
    fewest_groups = min((len(set(s.groups)) for s in sets if s.role == "domain"), default=0)
    return tuple(look for look in looks if math.ceil(round(look * fewest_groups, 9)) >= MIN_GROUPS)
