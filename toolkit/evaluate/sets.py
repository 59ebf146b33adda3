"""What every kind of evaluation is to the search and to the statistics: losses over sizes, by item.

A document has nats over bytes, a question 1 or 0 errors over 1, an answer of the general model nats
over tokens. All are ratios of sums, lower is better, and all are resampled alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from toolkit.evaluate.config import EvaluationRole
from toolkit.stage import hash_json
from toolkit.statistics.ratios import group_sums
from toolkit.statistics.set_changes import (
    BOUNDED_CHANGE,
    BOUNDED_LEVEL,
    SetChanges,
    count_answers,
)

__all__ = ["BITS", "EvaluationRole", "EvaluationSet"]

BITS = 1.0 / math.log(2.0)
"""Bits in a nat."""


@dataclass(frozen=True)
class EvaluationSet:
    """Items with a role; the figure of a model is `scale` · Σ losses / Σ sizes, lower is better.

    Attributes:
        name: for people, such as `filings` or `social_iqa`.
        role: what the set is for.
        unit: of the figure, such as `bits per byte` or `error`.
        ids: of each item.
        groups: what each item belongs to (a document, a company): items of a group are resampled
            together.
        sizes: what each item's loss is divided by: bytes, tokens, or 1.
        costs: tokens to be computed for each item.
        content_hash: of the items themselves, for the cache and against overlaps.
        score: losses of the items at these indices under a loaded model, in that order. It raises
            EvaluationError where one is not finite.
        scale: from losses over sizes to the unit.
        settings_hash: of whatever else the losses depend on (windows, separator, type), for the
            cache.
        item_hashes: of each item's content alone, against overlaps; empty where there is none.
        score_together: losses under this name and under those of other sets that the same pass
            through the model gives, or None where there are no others.
        tolerance: largest loss accepted of a `general` set, in its unit; None where the recipe's
            own tolerance, which is in bits per byte, is meant.
        note: what a reader of the figures should know, such as what intervals speak of.
        is_of_one_group: whether all items are of one group, so that they had to be drawn alone.
        sequences: tokens of each item, and how many at their end the loss is of, where it is minus
            their log likelihood; of a long document its first window. Empty for other losses.
    """

    name: str
    role: EvaluationRole
    unit: str
    ids: Sequence[str]
    groups: Sequence[str]
    sizes: Sequence[float]
    costs: Sequence[int]
    content_hash: str
    score: Callable[[Any, Sequence[int]], list[float]]
    scale: float = 1.0
    settings_hash: str = ""
    item_hashes: Sequence[str] = ()
    score_together: Callable[[Any, Sequence[int]], Mapping[str, list[float]]] | None = None
    tolerance: float | None = None
    note: str = ""
    is_of_one_group: bool = False
    sequences: Sequence[tuple[Sequence[int], int]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, indices: Sequence[int]) -> EvaluationSet:
        """A set of some of the items, in this order."""
        # Asked for by places in the whole set, as the set's own functions know no part of it.
        score_all = self.score_together

        def score(model: Any, chosen: Sequence[int]) -> list[float]:
            return self.score(model, [indices[index] for index in chosen])

        def score_together(model: Any, chosen: Sequence[int]) -> Mapping[str, list[float]]:
            assert score_all is not None  # noqa: S101  (given only where it is there)
            return score_all(model, [indices[index] for index in chosen])

        # Whatever is a sequence has an entry for each item, or none: a field that is added is cut
        # without being named here.
        values_by_field = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if str(field.type).startswith("Sequence[")
        }
        changes: dict[str, Any] = {
            name: [values[index] for index in indices] if values else values
            for name, values in values_by_field.items()
        }
        return replace(
            self,
            **changes,
            content_hash=hash_json([self.content_hash, list(indices)]),
            score=score,
            score_together=score_together if score_all is not None else None,
        )

    @property
    def num_groups(self) -> int:
        return len(set(self.groups))

    @property
    def is_bounded(self) -> bool:
        """Whether an item's loss lies between 0 and 1: an error, or one minus a metric."""
        return self.unit == "error" or self.unit.startswith("1 - ")

    def changes(
        self,
        columns: ArrayLike,
        rows: Sequence[int] | None = None,
        *,
        weight: float = 1.0,
        are_levels: bool = False,
    ) -> SetChanges:
        """Loss differences (or losses) by group, as bounds are made of them.

        Args:
            columns: of each item, `[K, N]`.
            rows: which items these are, all in order by default.
            weight: of the set among others.
            are_levels: whether they are losses themselves.
        """
        value_columns = np.atleast_2d(np.asarray(columns, dtype=np.float64))
        item_indices = list(range(len(self)) if rows is None else rows)
        sizes = np.asarray(self.sizes, dtype=np.float64)[item_indices]
        item_groups = [self.groups[place] for place in item_indices]
        added_tails: tuple[float, ...] = ()
        answer_counts: tuple[tuple[int, int], ...] = ()
        limits = (-math.inf, math.inf)
        if self.is_bounded:
            limits = (0.0 if are_levels else -self.scale, self.scale)
            # Losses between 0 and 1 could all have been the worst in items not drawn: bounds allow
            # for a few such.
            added_tails = BOUNDED_LEVEL if are_levels else BOUNDED_CHANGE
            alone = len(set(item_groups)) == len(item_groups) and set(sizes.tolist()) == {1.0}
            is_counted = set(np.unique(value_columns).tolist()) <= {-1.0, 0.0, 1.0}
            # Tango's test counts answers one by one: only where each stands alone and changes as a
            # whole.
            if alone and is_counted and not are_levels:
                answer_counts = tuple(count_answers(row) for row in value_columns)
        tops = self.scale * group_sums(value_columns, item_groups)
        bottoms = group_sums(sizes, item_groups)
        return SetChanges(tops, bottoms, weight, added_tails, answer_counts, limits)

    def figure(self, losses: ArrayLike, rows: Sequence[int] | None = None) -> float:
        """The set's figure from the losses of the items at `rows` (all of them by default).

        >>> two = EvaluationSet(
        ...     "x", "domain", "bits per byte", "ab", "ab", [1.0, 3.0], [1, 1], "", list, scale=2.0
        ... )
        >>> two.figure([2.0, 4.0])
        3.0
        """
        item_sizes = np.asarray(self.sizes, dtype=np.float64)
        chosen_sizes = item_sizes if rows is None else item_sizes[list(rows)]
        loss_sum = float(np.sum(np.asarray(losses, dtype=np.float64)))
        return self.scale * loss_sum / float(np.sum(chosen_sizes))
