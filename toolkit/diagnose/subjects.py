"""The models of a diagnosis: the merge, its parents, the base; and which tensor came from which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import Checkpoint
from toolkit.errors import MergeError, ToolkitError
from toolkit.merge.config import MergeConfig, load_merge_config
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.layer_stacks import Layout, layer_counts
from toolkit.merge.plan import MergePlan
from toolkit.merge.thresholds import with_thresholds
from toolkit.merge.vocab.vocabulary import plan_with_vocabulary

Identity = tuple[Path, str]
"""Folder of a model, and its adapter."""


@dataclass(frozen=True)
class Subjects:
    """What is compared with what.

    Attributes:
        names: references to the merge, its parents, and the base where it is no parent; `[V]`.
        labels: short and distinct names for them, `[V]`.
        checkpoints: opened models, `[V]`.
        base: index of the model that task vectors are taken against.
        num_parents: number of parents; they follow the merge.
        layout: layers of the merge.
        plan: plan of the merge, where its merge.yaml can still be planned.
        models: models that the plan's tensors are read from.
        note: reason that there is no plan, in words.
    """

    names: list[str]
    labels: list[str]
    checkpoints: list[Checkpoint]
    base: int
    num_parents: int
    layout: Layout
    plan: MergePlan | None
    models: Models
    note: str | None = None

    @property
    def parents(self) -> range:
        """Indices of the parents."""
        return range(1, 1 + self.num_parents)

    @property
    def tuned(self) -> list[int]:
        """Indices of the parents that have a task vector."""
        return [index for index in self.parents if index != self.base]

    def label_of(self, model: str) -> str:
        """The label of a model of the plan."""
        folder = _identity(model, self.models)
        # By what it stands for: the plan may spell a folder otherwise than the command line.
        for name, label in zip(self.names, self.labels, strict=True):
            if _identity(name, self.models) == folder:
                return label
        return Path(model).name

    def counterparts(self) -> dict[str, list[str]]:
        """The tensor of each model that stands behind each tensor of the merge, by the merge's
        name; tensors that a model lacks, or has in another shape, are left out."""
        model_identities = [_identity(name, self.models) for name in self.names]
        # Only then names differ between the models: layer 7 of the merge may be layer 3 of a
        # parent.
        is_moved = self.plan is not None and self._has_moved_layers(self.plan)
        sources_by_tensor: dict[str, dict[Identity, str]] = {}
        if self.plan is not None and is_moved:
            for task in self.plan.tasks:
                sources_by_tensor[task.name] = {
                    _identity(source.model, self.models): source.tensor for source in task.inputs
                }
        merge = self.checkpoints[0]
        counterparts: dict[str, list[str]] = {}
        for name in merge.names:
            # Where layers keep their places, a tensor has the same name in every model.
            tensor_by_model = {} if is_moved else dict.fromkeys(model_identities, name)
            tensor_by_model |= sources_by_tensor.get(name, {})
            tensors = [name, *(tensor_by_model.get(key, "") for key in model_identities[1:])]
            model_tensors = list(zip(self.checkpoints, tensors, strict=True))
            if all(t in c and c.info(t).shape == merge.info(name).shape for c, t in model_tensors):
                counterparts[name] = tensors
        return counterparts

    def _has_moved_layers(self, plan: MergePlan) -> bool:
        return any(
            [layer for _, layer in origin] != list(range(self.layout.stacks.get(stack, 0)))
            for stack, origin in plan.stacks.items()
        )


def open_subjects(
    merge: Path, against: Sequence[str], base: str | None, workers: WorkerThreads
) -> Subjects:
    """Open a merge and what it is compared with.

    Args:
        merge: folder of the merged model; its merge.yaml says what is not given here.
        against: references to its parents; those of merge.yaml where none is given.
        base: reference to the model that task vectors are taken against; else the base model of
            merge.yaml, else the first parent.
        workers: threads, for thresholds over whole models.

    Raises:
        MergeError: a model is not there, or no parent is known.
        CheckpointError: a model is damaged.
    """
    models = Models()
    # The plan is an extra: without it the tensors are compared all the same.
    config, note = _load_config(merge)
    plan: MergePlan | None = None
    if config is not None:
        try:
            merge_plan, models, _ = plan_with_vocabulary(config, models)
            plan = with_thresholds(merge_plan, models, workers)
        except ToolkitError as error:
            note = f"{merge / 'merge.yaml'} cannot be followed from this folder ({error})"
    # What its paths lead to is only known where the configuration can be followed.
    followed_config = config if plan is not None else None
    parents = list(dict.fromkeys(against))
    if not parents and followed_config is not None:
        parents = followed_config.model_names()
    if not parents and config is not None:
        raise MergeError(
            f"{note}; run from the folder that its paths count from, or give --against."
        )
    if not parents:
        raise MergeError(f"{merge}: has no merge.yaml that says its parents; give --against.")
    names = [str(merge), *parents]
    # Merges without a base, such as plain means, are seen from their first parent.
    base = base or (followed_config.base_model if followed_config is not None else None)
    base_index = 1 if base is None else _add_base(names, base, models)
    return Subjects(
        names=names,
        labels=_labels(names),
        checkpoints=[models.checkpoint(name) for name in names],
        base=base_index,
        num_parents=len(parents),
        layout=Layout(models.shapes(str(merge)), layer_counts(models.config(str(merge)))),
        plan=plan,
        models=models,
        note=note,
    )


def _add_base(names: list[str], base: str, models: Models) -> int:
    """The place of the base among the models, at their end where it is no parent."""
    identities = [_identity(name, models) for name in names]
    base_identity = _identity(base, models)
    # Not at place 0: the merge itself must never stand for its base.
    if base_identity in identities[1:]:
        return identities.index(base_identity, 1)
    names.append(base)
    return len(names) - 1


def _load_config(merge: Path) -> tuple[MergeConfig | None, str | None]:
    path = merge / "merge.yaml"
    if not path.is_file():
        return None, None
    try:
        return load_merge_config(path), None
    except ToolkitError as error:
        return None, str(error)


def _identity(name: str, models: Models) -> Identity:
    """What a reference means: two spellings of one folder are one model."""
    _, _, adapter = name.partition("+")
    folder = models.checkpoint(name).folder.resolve()
    # A folder's own name may hold a plus sign, which then begins no adapter.
    return folder, "" if Path(name).is_dir() else adapter


def _labels(names: Sequence[str]) -> list[str]:
    """The last part of each path, with as many parts before it as tell them apart.

    >>> _labels(["runs/a/merge", "runs/a/cpt", "runs/b/cpt"])
    ['merge', 'a/cpt', 'b/cpt']
    >>> _labels(["runs/a/merge", "a", "./a"])
    ['merge', 'a (2)', 'a (3)']
    """
    all_parts = [Path(name).parts or (name,) for name in names]
    labels: list[str] = []
    for parts in all_parts:
        count = 1
        # Ends with the whole path, even where two are alike to the end.
        while count < len(parts) and [o[-count:] for o in all_parts].count(parts[-count:]) > 1:
            count += 1
        labels.append("/".join(parts[-count:]))
    # Two spellings of one path are told apart by their place.
    return [
        label if labels.count(label) == 1 else f"{label} ({place})"
        for place, label in enumerate(labels, start=1)
    ]
