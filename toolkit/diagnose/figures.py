"""From sums to figures: norms, cosines, shares and places, of the whole merge, layers and kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from toolkit.diagnose.measure import KINDS, Group, MeasuredMerge
from toolkit.diagnose.subjects import Subjects
from toolkit.diagnose.sums import Sums
from toolkit.diagnose.trimming import RemovedByTrimming

Pair = tuple[str, str]


class TrimmedShares(NamedTuple):
    """Shares of a task vector's entries, and of its squared norm, that trimming removed."""

    entries: float | None
    squares: float | None


@dataclass(frozen=True)
class DiagnosisFigures:
    """What the sums of one group of tensors say; None where something is zero that is divided by.

    Attributes:
        name: name of the group.
        entries: number of entries of its tensors.
        moved: norm of merge minus base, relative to the base's norm.
        task_norms: the same of each parent that is not the base, by label.
        cosines: cosine between the task vectors of two parents.
        agreement: share of the entries in which two parents differ from the base that differ in the
            same direction.
        distances: distance of the merge from each parent, relative to the parents' largest
            distance.
        base_distance: the same from the base.
        aside: distance of the merge from the plane through the parents and the base, relative to
            the parents' largest distance; what trimming and rounding leave.
        scatter: the parents' largest distance, relative to the base's norm.
        trimmed: what trimming removed of each task vector, by label.
    """

    name: str
    entries: int
    moved: float | None
    task_norms: Mapping[str, float | None]
    cosines: Mapping[Pair, float | None]
    agreement: Mapping[Pair, float | None]
    distances: Mapping[str, float | None]
    base_distance: float | None
    aside: float | None
    scatter: float | None
    trimmed: Mapping[str, TrimmedShares]


@dataclass(frozen=True)
class Diagnosis:
    """The figures of a merge.

    Attributes:
        subjects: what was compared.
        measured: what was damaged, empty or left out.
        whole: figures of all compared tensors.
        layers: figures of each layer, in order.
        kinds: figures of attention, mlp, norm, embedding, head, other, where there are any.
        parts: figures of each layer's kinds, by the layer's name and the kind.
    """

    subjects: Subjects
    measured: MeasuredMerge
    whole: DiagnosisFigures
    layers: list[DiagnosisFigures]
    kinds: list[DiagnosisFigures]
    parts: dict[tuple[str, str], DiagnosisFigures]


def diagnosis_of(subjects: Subjects, measured: MeasuredMerge) -> Diagnosis:
    """Figures of the whole, of layers, of kinds, and of kinds in layers."""
    num_models = len(subjects.checkpoints)
    whole = figures_of("all", measured.total(num_models), subjects)
    # Stacks by name, layers by number: as text layer 10 would come before layer 2.
    places = sorted({(s, layer) for s, layer, _ in measured.groups if s is not None})
    num_stacks = len({stack for stack, _ in places})
    layers: list[DiagnosisFigures] = []
    parts_by_place: dict[tuple[str, str], DiagnosisFigures] = {}
    for stack, number in places:
        name = f"{number}" if num_stacks == 1 else f"{stack}.{number}"
        layers.append(figures_of(name, measured.total(num_models, (stack, number)), subjects))
        for kind in KINDS:
            if (part_group := measured.groups.get((stack, number, kind))) is not None:
                parts_by_place[name, kind] = figures_of(f"{name} {kind}", part_group, subjects)
    kinds = [
        figures_of(kind, measured.total(num_models, kind=kind), subjects)
        for kind in KINDS
        if any(key[2] == kind for key in measured.groups)
    ]
    return Diagnosis(subjects, measured, whole, layers, kinds, parts_by_place)


def figures_of(name: str, group: Group, subjects: Subjects) -> DiagnosisFigures:
    """The figures of one group of tensors."""
    sums, base, labels = group.sums, subjects.base, subjects.labels
    # All lengths are relative, so that layers and models of any size can be compared.
    base_norm = math.sqrt(sums.squares[base])
    # Of a single parent nothing lies between parents: it is held against the base.
    outer_models = [*subjects.parents] if len(subjects.parents) > 1 else [1, base]
    largest_distance = _largest_distance(sums, outer_models)
    pairs = list(combinations(subjects.tuned, 2))

    def relative_distance(model: int, other: int, unit: float) -> float | None:
        return _ratio(math.sqrt(sums.gaps[model, other]), unit)

    return DiagnosisFigures(
        name=name,
        entries=sums.entries,
        moved=relative_distance(0, base, base_norm),
        task_norms={labels[i]: relative_distance(i, base, base_norm) for i in subjects.tuned},
        cosines={(labels[i], labels[j]): _cosine(sums, base, i, j) for i, j in pairs},
        agreement={
            (labels[i], labels[j]): _ratio(float(sums.same[i, j]), float(sums.both[i, j]))
            for i, j in pairs
        },
        distances={labels[i]: relative_distance(0, i, largest_distance) for i in subjects.parents},
        base_distance=relative_distance(0, base, largest_distance),
        aside=_ratio(_distance_aside(sums, base), largest_distance),
        scatter=_ratio(largest_distance, base_norm),
        trimmed={label: _trimmed_shares(removed) for label, removed in group.trimmed.items()},
    )


def _largest_distance(sums: Sums, models: list[int]) -> float:
    return math.sqrt(max((sums.gaps[i, j] for i, j in combinations(models, 2)), default=0.0))


def _cosine(sums: Sums, base: int, i: int, j: int) -> float | None:
    """By the law of cosines: the three distances between two models and the base say the angle."""
    a, b = float(sums.gaps[i, base]), float(sums.gaps[j, base])
    cosine = _ratio((a + b - float(sums.gaps[i, j])) / 2.0, math.sqrt(a) * math.sqrt(b))
    # Three large sums are subtracted: rounding may lead a little beyond 1.
    return None if cosine is None else max(-1.0, min(1.0, cosine))


def _distance_aside(sums: Sums, base: int) -> float:
    """What is left of merge minus base when the part along the other models is taken away."""
    other_models = [index for index in range(1, len(sums.squares)) if index != base]
    to_base = sums.gaps[:, base]
    # Inner products of all models minus the base, again by the law of cosines.
    products = (to_base[:, None] + to_base[None, :] - sums.gaps) / 2.0
    products_along = products[0, other_models]
    # Least squares and no inverse: parents that are alike, or one that is the base in this layer,
    # make the matrix singular. The cutoff drops directions that are rounding alone.
    weights = np.linalg.lstsq(
        products[np.ix_(other_models, other_models)], products_along, rcond=1e-12
    )[0]
    # Of a merge in the plane a little below 0 is left.
    return math.sqrt(max(0.0, float(to_base[0] - products_along @ weights)))


def _trimmed_shares(removed: RemovedByTrimming) -> TrimmedShares:
    return TrimmedShares(
        _ratio(removed.removed, removed.entries),
        _ratio(removed.removed_squares, removed.squares),
    )


def _ratio(top: float, bottom: float) -> float | None:
    return top / bottom if bottom > 0.0 else None
