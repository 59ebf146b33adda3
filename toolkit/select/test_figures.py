"""Figures on the test sets: general model, specialist and the chosen merge, scored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.objective import same_unit
from toolkit.search.space import SPECIALIST
from toolkit.select.results import (
    DocumentFigures,
    FiguresByModel,
    ModelFigures,
    ModelName,
    SpecialistResult,
)
from toolkit.statistics.interval import Interval
from toolkit.statistics.paired import PairedChanges
from toolkit.statistics.set_changes import SetChanges

Floats = NDArray[np.float64]
MERGE = "merge"
MODELS: tuple[str, ...] = get_args(ModelName)
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


@dataclass(frozen=True)
class FinalFigures:
    """Figures on the test sets.

    Attributes:
        models: intervals of each model by role and by set, and of its differences from the general
            model.
        gain_kept: fraction of the specialist's domain gain that the merge has; None where its
            interval does not show one.
        loss_recovered: fraction of the specialist's general loss that the merge does not have; None
            where no loss is shown (a fraction of what may be nothing has no meaning).
        sets_recovered: the same by general set.
        specialists: figures of several specialists.
    """

    models: FiguresByModel
    gain_kept: Interval | None
    loss_recovered: Interval | None
    sets_recovered: dict[str, Interval | None]
    specialists: tuple[SpecialistResult, ...] = ()


def final_figures(
    figures: ScoredTestSets, own_sets: Mapping[str, Sequence[str]] | None = None
) -> FinalFigures:
    """Figures of the models on the test sets.

    Args:
        figures: losses of the three models, and of each of several specialists by its name.
        own_sets: domain sets by specialist, where there are several.
    """
    role_levels = {role: figures.levels(figures.names(role)) for role in ROLES}
    role_changes = {role: figures.changes(figures.names(role)) for role in ROLES}
    set_levels = {name: figures.levels([name]) for name in figures.sets}
    set_changes = {name: figures.changes([name]) for name in figures.sets}

    def figures_of(model: str) -> ModelFigures:
        column = figures.models.index(model)
        return ModelFigures(
            domain=role_levels["domain"].change(column).interval(),
            domain_change=role_changes["domain"].change(column).interval(),
            general=role_levels["general"].change(column).interval(),
            general_change=role_changes["general"].change(column).interval(),
            sets={name: level.change(column).interval() for name, level in set_levels.items()},
            set_changes={name: one.change(column).interval() for name, one in set_changes.items()},
        )

    models = FiguresByModel(
        general=figures_of("general"),
        specialist=figures_of("specialist"),
        merge=figures_of("merge"),
    )
    # Several specialists have no gain in common that one fraction could be of.
    if own_sets:  # fractions of what each specialist gained stand with it
        specialists = tuple(
            _specialist_result(name, names, figures, figures_of(name))
            for name, names in own_sets.items()
        )
        return FinalFigures(models, None, None, {}, specialists)
    general = [name for name, item in figures.sets.items() if item.role == "general"]
    return FinalFigures(
        models,
        _share(figures, role_changes["domain"], -1.0),
        _complement(_share(figures, role_changes["general"], 1.0)),
        {name: _complement(_share(figures, set_changes[name], 1.0)) for name in general},
    )


def _specialist_result(
    name: str, own_sets: Sequence[str], figures: ScoredTestSets, model: ModelFigures
) -> SpecialistResult:
    changes = figures.changes(own_sets)
    return SpecialistResult(
        name=name,
        sets=tuple(own_sets),
        figures=model,
        own_change=changes.change(figures.models.index(name)).interval(),
        merge_change=changes.change(figures.models.index(MERGE)).interval(),
        gain_kept=_share(figures, changes, -1.0, name),
    )


def _share(
    figures: ScoredTestSets, changes: PairedChanges, sign: float, of: str = SPECIALIST
) -> Interval | None:
    """The merge's change as a fraction of a specialist's; None where the specialist's is not
    shown to have this sign."""
    merge_column, specialist_column = figures.models.index(MERGE), figures.models.index(of)
    # A share of a loss where a gain is meant would read as the opposite of what it is.
    if sign * changes.change(specialist_column).estimate <= 0.0:
        return None
    return changes.ratio(merge_column, specialist_column)


def _complement(share: Interval | None) -> Interval | None:
    if share is None:
        return None
    return Interval(1.0 - share.estimate, 1.0 - share.high, 1.0 - share.low)


def document_figures(
    losses: Mapping[str, Mapping[str, Sequence[float]]], sets: Sequence[EvaluationSet]
) -> tuple[DocumentFigures, ...]:
    """The figure of every item under every model.

    Args:
        losses: losses by model and set, in the order of items.
        sets: the test sets.
    """
    rows = []
    for item in sets:
        for index, name in enumerate(item.ids):
            figures = {
                model: item.scale * float(set_losses[item.name][index]) / float(item.sizes[index])
                for model, set_losses in losses.items()
            }
            others = {model: figures.pop(model) for model in list(figures) if model not in MODELS}
            rows.append(
                DocumentFigures(
                    id=name, set=item.name, role=item.role, specialists=others, **figures
                )
            )
    return tuple(rows)
