"""Whether a model was made from another: shapes, tokens, size and angle of the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import is_float
from toolkit.checkpoint.tokens import read_tokens
from toolkit.errors import MergeError, warn
from toolkit.merge.kernels import compiled
from toolkit.merge.kernels.rows import RowReader, as_float32, read_entries
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.layer_stacks import Layout, layer_counts

UNRELATED = 1.0
"""Norm of the difference, relative to the base's, from which on two models are no relatives: two
that were trained apart are at 1.4, fine-tuning stays below 0.3."""

FAR = 0.5
"""The same from which on one is warned: what was learned beside one may not suit the other."""

_NAMES = 3


@dataclass(frozen=True)
class Relation:
    """What lies between a model and the base that it was made from.

    Attributes:
        distance: norm of model − base, relative to the base's norm; 0 of equal models.
        cosine: cosine between the two, over all entries of matrices, as are the norms.
        layers: the relative norm by layer.
    """

    distance: float
    cosine: float
    layers: Mapping[int, float]


def relate(model: Path, base: Path) -> Relation:
    """Compare a model with the base that it is said to come from.

    Args:
        model: folder of the model, such as an instruct one.
        base: folder of the model under it.

    Raises:
        MergeError: they differ in tensors, shapes or tokens, or are no relatives.
        CheckpointError: one cannot be read.
    """
    models = Models({"model": model, "base": base})
    _refuse_other_shapes(models, model, base)
    _refuse_other_tokens(model, base)
    relation = _compare(models)
    if relation.distance >= UNRELATED:
        raise MergeError(
            f"{base}: is no base of {model}: what lies between them is {relation.distance:.2f} "
            f"times as long as the base itself (cosine {relation.cosine:.2f}), as of models that "
            "were trained apart. A specialist of one cannot be added to the other."
        )
    if relation.distance >= FAR:
        warn(
            f"{base} and {model}: what lies between them is {relation.distance:.2f} times as long "
            "as the base itself; what is learned beside one may not suit the other."
        )
    if relation.distance == 0.0:
        warn(f"{base} and {model}: hold the same weights; leave train.start out.")
    return relation


def describe_relation(relation: Relation) -> str:
    """A line for people."""
    layers = list(relation.layers.values())
    spread = f" ({min(layers):.3f} to {max(layers):.3f} by layer)" if layers else ""
    return (
        f"  general model − base: {relation.distance:.3f} of the base's norm{spread}, cosine "
        f"{relation.cosine:.4f}"
    )


def _refuse_other_shapes(models: Models, model: Path, base: Path) -> None:
    ours, theirs = models.shapes("model"), models.shapes("base")
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            words = [str(list(s[name])) if name in s else "missing" for s in (ours, theirs)]
            raise MergeError(
                f"{name}: is {words[0]} in {model} and {words[1]} in {base}; a specialist of the "
                "base can be added to the other only where all tensors agree."
            )


def _refuse_other_tokens(model: Path, base: Path) -> None:
    ours, theirs = read_tokens(model), read_tokens(base)
    if not ours.are_listed or not theirs.are_listed:
        return
    # Tokens that only one of them has, such as those of chat turns, are rows that it alone trained.
    moved = [text for text in theirs.ids if text in ours.ids and ours.ids[text] != theirs.ids[text]]
    if moved:
        shown = ", ".join(
            f"{text!r} ({ours.ids[text]} and {theirs.ids[text]})" for text in moved[:_NAMES]
        )
        raise MergeError(
            f"{model} and {base}: {len(moved)} tokens have other ids in one than in the other: "
            f"{shown}. Text of one tokenizer cannot train the other model."
        )


def _compare(models: Models) -> Relation:
    workers, layout = (
        WorkerThreads(),
        Layout(models.shapes("base"), layer_counts(models.config("base"))),
    )
    ours, theirs = models.checkpoint("model"), models.checkpoint("base")
    total = np.zeros(3)
    by_layer: dict[int, np.ndarray] = {}
    for name in theirs.names:
        # Scales of norms are near one in every model, and would make strangers look alike.
        is_matrix = len(theirs.info(name).shape) > 1
        if not is_matrix or not all(is_float(each.info(name).dtype) for each in (ours, theirs)):
            continue
        reader = RowReader([read_entries(each, name) for each in (ours, theirs)])
        sums = _norms(reader, math.prod(theirs.info(name).shape), workers)
        if not np.isfinite(sums).all():
            damaged = theirs if np.isfinite(sums[0]) else ours
            raise MergeError(
                f"{name}: holds NaN or infinity in {damaged.damaged_file(name)}; the model is "
                "damaged, and what lies between the two cannot be said. Get it again."
            )
        total += sums
        if (place := layout.find(name)) is not None and place[0] in layout.main:
            by_layer[place[1]] = by_layer.get(place[1], np.zeros(3)) + sums
        ours.give_back(name)
        theirs.give_back(name)
    layers = {layer: _relative(by_layer[layer]) for layer in sorted(by_layer)}
    model_square, base_square, gap = total
    length = math.sqrt(model_square * base_square)
    cosine = (model_square + base_square - gap) / (2.0 * length) if length else 0.0
    return Relation(_relative(total), cosine, layers)


def _relative(sums: np.ndarray) -> float:
    # Of a base of zeros nothing was made, unless the model is zero too.
    return math.sqrt(sums[2] / sums[1]) if sums[1] else math.inf if sums[2] else 0.0


def _norms(read: RowReader, size: int, workers: WorkerThreads) -> np.ndarray:
    """`model·model`, `base·base` and the squared distance."""

    def act(start: int, stop: int) -> np.ndarray:
        rows = read(start, stop)
        squares, gaps = np.zeros(2), np.zeros((2, 2))
        counts = np.zeros((2, 2), np.int64)
        try:
            compiled.compare_models(rows, 1, squares, gaps, counts, counts, np.zeros(2, np.int64))
        except compiled.KernelError as error:
            compiled.announce_fallback(str(error).splitlines()[0])
            x, y = (as_float32(row).astype(np.float64) for row in rows)
            return np.array([x @ x, y @ y, (x - y) @ (x - y)])
        return np.array([*squares, gaps[0, 1]])

    return np.sum(workers.each(size, act), axis=0) if size else np.zeros(3)
