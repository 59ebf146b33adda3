"""Figures on the test sets: general model, specialist and the chosen merge, scored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.objective import same_unit
from toolkit.search.space import SPECIALIST
from toolkit.statistics.interval import Interval
from toolkit.statistics.paired import PairedChanges
from toolkit.statistics.set_changes import SetChanges

Floats = NDArray[np.float64]
MERGE = "merge"
ROLES = ("domain", "general")


class ScoredTestSets:
    """The test sets by role, with what any difference between models on them is worth.

    Args:
        sets: the test sets.
        weights: of domain sets, 1 where not given.
        losses: by model (`general` first, `specialist`, `merge`) and set, in the order of items.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        weights: Mapping[str, float],
        losses: Mapping[str, Mapping[str, Sequence[float]]],
    ) -> None:
        self.sets = {item.name: item for item in sets}
        self._weights = {
            item.name: weights.get(item.name, 1.0) if item.role == "domain" else 1.0
            for item in sets
        }
        self._losses = {
            name: np.array([own[name] for own in losses.values()], dtype=np.float64)
            for name in self.sets
        }
        self.models = list(losses)

    def names(self, role: str) -> list[str]:
        """Sets behind a role's figure: of general ones those in the unit of the first."""
        sets = [item for item in self.sets.values() if item.role == role]
        return [item.name for item in sets] if role == "domain" else same_unit(sets)

    def levels(self, names: Sequence[str]) -> PairedChanges:
        """Figures of all models, weighted over these sets."""
        return PairedChanges([self._part(name, self._losses[name], True) for name in names])

    def changes(self, names: Sequence[str]) -> PairedChanges:
        """The same minus the general model's."""
        return PairedChanges(
            [self._part(name, self._losses[name] - self._losses[name][0], False) for name in names]
        )

    def _part(self, name: str, columns: Floats, are_levels: bool) -> SetChanges:
        return self.sets[name].changes(columns, weight=self._weights[name], are_levels=are_levels)


def final_figures(figures: ScoredTestSets) -> dict[str, Any]:
    """Figures on the test sets.

    Returns:
        For each model and role an interval, and its difference from the general model, and an
        interval for each set; `gain_kept`: share of the specialist's domain gain that the merge
        has, or None where its interval does not show one; `loss_recovered`: share of the
        specialist's general loss that the merge does not have, or None where no loss is shown (a
        share of what may be nothing has no meaning); `sets_recovered`: the same of each general
        set.
    """
    sets = {name: [name] for name in figures.sets}
    roles = {role: figures.names(role) for role in ROLES}
    levels = {key: figures.levels(names) for key, names in (sets | roles).items()}
    changes = {key: figures.changes(names) for key, names in (sets | roles).items()}
    models: dict[str, Any] = {}
    for column, model in enumerate(figures.models):
        row: dict[str, Any] = {}
        for role in ROLES:
            row[role] = asdict(levels[role].change(column).interval())
            row[f"{role}_change"] = asdict(changes[role].change(column).interval())
        row["sets"] = {name: asdict(levels[name].change(column).interval()) for name in sets}
        row["set_changes"] = {
            name: asdict(changes[name].change(column).interval()) for name in sets
        }
        models[model] = row
    general = [name for name, item in figures.sets.items() if item.role == "general"]
    return {
        "models": models,
        "gain_kept": _share(figures, changes["domain"], -1.0),
        "loss_recovered": _complement(_share(figures, changes["general"], 1.0)),
        "sets_recovered": {
            name: _complement(_share(figures, changes[name], 1.0)) for name in general
        },
    }


def _share(figures: ScoredTestSets, changes: PairedChanges, sign: float) -> dict[str, float] | None:
    """The merge's change as a share of the specialist's; None where the specialist's is not shown
    to have this sign."""
    part, whole = figures.models.index(MERGE), figures.models.index(SPECIALIST)
    if sign * changes.change(whole).estimate <= 0.0:
        return None
    share = changes.ratio(part, whole)
    return None if share is None else asdict(share)


def _complement(share: dict[str, float] | None) -> dict[str, float] | None:
    if share is None:
        return None
    return asdict(Interval(1.0 - share["estimate"], 1.0 - share["high"], 1.0 - share["low"]))


def document_rows(
    losses: Mapping[str, Mapping[str, Sequence[float]]], sets: Sequence[EvaluationSet]
) -> list[dict[str, Any]]:
    """The figure of every item under every model."""
    rows = []
    for item in sets:
        for index, name in enumerate(item.ids):
            figures = {
                model: item.scale * float(own[item.name][index]) / float(item.sizes[index])
                for model, own in losses.items()
            }
            rows.append({"id": name, "set": item.name, "role": item.role, **figures})
    return rows
