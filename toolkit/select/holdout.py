"""Validation documents in two parts: for the search, and for the confirmation of its best few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.evaluate.sets import EvaluationSet
from toolkit.statistics.sampled_differences import MIN_GROUPS
from toolkit.statistics.seeds import named_seed


@dataclass(frozen=True)
class Parts:
    """Both parts; `confirm` is the same sets again where there are too few documents to divide.

    Attributes:
        search: sets that the search sees.
        confirm: sets for the last few candidates.
        are_separate: whether no item stands in both.
        note: for people, where they are not.
    """

    search: list[EvaluationSet]
    confirm: list[EvaluationSet]
    are_separate: bool
    note: str = ""


def divide(sets: Sequence[EvaluationSet], fraction: float, seed: int) -> Parts:
    """Set part of each set's groups aside, those whose names hash lowest.

    The hash does not depend on the set, so that sets over the same documents are divided alike.

    Args:
        sets: the validation sets.
        fraction: of the groups, to be set aside.
        seed: of the recipe.
    """
    if fraction == 0.0:
        return Parts(list(sets), list(sets), False, "search.confirm_fraction is 0")
    search, confirm = [], []
    for items in sets:
        group_names = sorted(
            set(items.groups), key=lambda name: (named_seed(seed, "confirm", name), name)
        )
        # A set that is only watched may be small: whatever is set aside, something is left.
        num_aside = min(round(fraction * len(group_names)), len(group_names) - 1)
        groups_aside = set(group_names[:num_aside])
        if items.role != "watch" and min(num_aside, len(group_names) - num_aside) < MIN_GROUPS:
            note = (
                f"{items.name} has {len(group_names)} validation documents, too few to set "
                f"{fraction:.0%} aside ({MIN_GROUPS} are needed on either side)"
            )
            # One set that cannot be divided keeps all of them together: a merge is confirmed on
            # every set, or on none by itself.
            return Parts(list(sets), list(sets), False, note)
        indices_aside = [index for index, group in enumerate(items.groups) if group in groups_aside]
        rest = [index for index, group in enumerate(items.groups) if group not in groups_aside]
        search.append(items.only(rest))
        # A set that is only watched may be too small to have anything set aside.
        if indices_aside:
            confirm.append(items.only(indices_aside))
    return Parts(search, confirm, True)
