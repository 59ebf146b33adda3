"""One walk over all tensors of a merge and its parents, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.tensor_names import is_vocabulary
from toolkit.diagnose.subjects import Subjects
from toolkit.diagnose.sums import Sums, sum_tensor, zero_rows
from toolkit.diagnose.trimming import RemovedByTrimming, trimmed_by
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.layer_stacks import is_before_layers
from toolkit.merge.task import TensorTask

KINDS = ("attention", "mlp", "norm", "embedding", "head", "other")

# Asked in this order: `self_attn.q_norm` is a norm, and `self_attn.o_proj` is attention although
# it ends like the projections of an mlp.
_NORM = re.compile(r"norm|(?:^|\.)ln_|layernorm", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention|(?:^|\.)[qkvo]_proj|\.attn_", re.IGNORECASE)
_MLP = re.compile(r"mlp|feed_forward|ffn|expert|moe|(?:^|\.)fc\d|_proj\.", re.IGNORECASE)


@dataclass
class Group:
    """Sums over the tensors of one layer and kind.

    Attributes:
        sums: sums over entries.
        trimmed: what trimming removed, by the label of the tuned model.
    """

    sums: Sums
    trimmed: dict[str, RemovedByTrimming] = field(default_factory=dict)

    def add(self, sums: Sums, trimmed: dict[str, RemovedByTrimming]) -> None:
        self.sums += sums
        for label, removed in trimmed.items():
            self.trimmed[label] = self.trimmed.get(label, RemovedByTrimming()) + removed


@dataclass
class MeasuredMerge:
    """What the walk found.

    Attributes:
        groups: sums by stack (None outside of layers), layer and kind.
        left_out: tensors that some model lacks, has in another shape or in an 8-bit type.
        non_finite: number of entries that are NaN or infinite, by model's label and tensor.
        zero_rows: rows of the vocabulary that are all zero in the merge and not in every parent, by
            tensor.
        padding_rows: number of rows that are zero in the merge and in every parent.
    """

    groups: dict[tuple[str | None, int, str], Group] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    non_finite: dict[str, dict[str, int]] = field(default_factory=dict)
    zero_rows: dict[str, list[int]] = field(default_factory=dict)
    padding_rows: int = 0

    def total(
        self, num_models: int, place: tuple[str, int] | None = None, kind: str | None = None
    ) -> Group:
        """The sums of all groups, or of those in one layer, or of one kind."""
        total_group = Group(Sums.zero(num_models))
        for (stack, layer, group_kind), group in self.groups.items():
            if place in (None, (stack, layer)) and kind in (None, group_kind):
                total_group.add(group.sums, group.trimmed)
        return total_group


def measure(
    subjects: Subjects, workers: WorkerThreads, advance: Callable[[float, str], None] | None = None
) -> MeasuredMerge:
    """Walk over every tensor of the merge.

    Args:
        subjects: models that are compared.
        workers: threads to compute with.
        advance: is told of every tensor.

    Returns:
        Sums by layer and kind; damaged tensors are counted, and kept out of the sums.
    """
    measured = MeasuredMerge()
    counterparts = subjects.counterparts()
    tasks_by_name = (
        {task.name: task for task in subjects.plan.tasks} if subjects.plan is not None else {}
    )
    for name in subjects.checkpoints[0].names:
        tensors = counterparts.get(name, [name])
        # Without counterparts the merge alone is read: one name for several models.
        model_tensors = list(zip(subjects.checkpoints, tensors, strict=False))
        read_arrays = [checkpoint.array(tensor) for checkpoint, tensor in model_tensors]
        # None is a type that numpy cannot hold, such as 8-bit floats.
        arrays = [array[:] for array in read_arrays if array is not None]
        is_compared = len(arrays) == len(subjects.checkpoints)
        if arrays and len(arrays) == len(read_arrays):
            # Alone where there is nothing to compare it with: damage is looked for all the same.
            sums = sum_tensor(arrays, subjects.base if is_compared else 0, workers)
            is_damaged = _note_damage(measured, subjects, tensors, sums)
            if is_vocabulary(name):
                _find_zero_rows(measured, subjects, name, arrays[0], workers)
            # One NaN would make every sum of its layer one.
            if is_compared and not is_damaged:
                stack, layer = subjects.layout.find(name) or (None, 0)
                key = (stack, layer, kind_of(name))
                group = measured.groups.setdefault(key, Group(Sums.zero(len(arrays))))
                group.add(sums, _trimmed(subjects, tasks_by_name.get(name), workers))
        if not is_compared:
            measured.left_out.append(name)
        for checkpoint, tensor in model_tensors:
            # Given back tensor by tensor, whatever came of it: all models together need not fit.
            checkpoint.give_back(tensor)
        if advance is not None:
            advance(1, name)
    return measured


def _note_damage(
    measured: MeasuredMerge, subjects: Subjects, tensors: list[str], sums: Sums
) -> bool:
    """Note entries that are NaN or infinite; whether there are any."""
    for label, tensor, count in zip(subjects.labels, tensors, sums.non_finite, strict=False):
        if count:
            measured.non_finite.setdefault(label, {})[tensor] = int(count)
    return bool(sums.non_finite.any())


def _trimmed(
    subjects: Subjects, task: TensorTask | None, workers: WorkerThreads
) -> dict[str, RemovedByTrimming]:
    if subjects.plan is None or task is None:
        return {}
    removed = trimmed_by(subjects.plan, task, subjects.models, workers)
    return {subjects.label_of(model): sums for model, sums in removed.items()}


def _find_zero_rows(
    measured: MeasuredMerge,
    subjects: Subjects,
    name: str,
    merged_array: NDArray[Any],
    workers: WorkerThreads,
) -> None:
    zero_in_merge = zero_rows(merged_array, subjects.checkpoints[0].info(name).shape, workers)
    # The common case, in which the parents' rows are not read again.
    if not zero_in_merge.any():
        return
    zero_in_parents = []
    for parent in subjects.checkpoints[1:]:
        # None is a type that numpy cannot hold, of which nothing is known.
        if name in parent and (parent_array := parent.array(name)) is not None:
            zero_in_parents.append(zero_rows(parent_array[:], parent.info(name).shape, workers))
            parent.give_back(name)
    # Rows that are zero in every parent too are padding of the vocabulary, and so are those that a
    # smaller vocabulary does not have.
    is_padding = zero_in_merge.copy() if zero_in_parents else np.zeros_like(zero_in_merge)
    for rows in zero_in_parents:
        is_padding[: len(rows)] &= rows[: len(is_padding)]
    measured.padding_rows += int(is_padding.sum())
    if lost_rows := np.flatnonzero(zero_in_merge & ~is_padding).tolist():
        measured.zero_rows[name] = lost_rows


def kind_of(name: str) -> str:
    """What a tensor is part of, by its name.

    >>> names = ("model.layers.0.self_attn.q_norm.weight", "h.0.attn.c_attn.weight",
    ...          "model.layers.0.mlp.down_proj.weight", "lm_head.weight", "wte.weight", "a.gate")
    >>> [kind_of(name) for name in names]
    ['norm', 'attention', 'mlp', 'head', 'embedding', 'other']
    """
    if is_vocabulary(name):
        # A tied head is stored once, as the embedding.
        return "embedding" if is_before_layers(name) else "head"
    for kind, pattern in (("norm", _NORM), ("attention", _ATTENTION), ("mlp", _MLP)):
        if pattern.search(name):
            return kind
    return "embedding" if is_before_layers(name) else "other"
