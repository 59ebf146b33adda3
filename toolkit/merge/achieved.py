"""What a merge asks and what it achieves: how much of each specialist's change is in the result.

A merge of α 0.2 is stored in 16 bits, and of a change of one or two steps of the type a fifth may
round away. Along the changes `d_m = x_m − base` of the tuned models, the result's own change
`merge − base` has the fractions `f` that fit it best (least squares over all entries); of one tuned
model that is the projection `⟨merge − base, d⟩ / ⟨d, d⟩`. Inner products add up, so fractions of a
layer and of the whole follow from those of blocks.

Legend: M tuned models.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.models import Models, Source
from toolkit.checkpoint.read import Checkpoint, has_array, is_float
from toolkit.merge.compute import ComputeSettings, Destination, NonFiniteError, run_task
from toolkit.merge.kernels import compiled
from toolkit.merge.kernels.rows import Rows, as_float32, as_row, read_entries
from toolkit.merge.methods.lines import depth_scale
from toolkit.merge.plan import MergePlan
from toolkit.merge.task import TensorTask

_RUN, _STRIDE = 2048, 32749
"""Of a sample: entries in a run, and from the beginning of one to the next. The distance is odd, so
that runs begin in different columns of a matrix."""

_NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

_WORTH_SAYING = 0.05
"""Of what is asked, the fraction that must be missing before one is warned of it: α 0.2 stored as
0.19 is within what two runs differ by."""


@dataclass(frozen=True)
class Fractions:
    """How much of one tuned model's change is in a merge; None where it cannot be said.

    Attributes:
        asked: by the configuration, for methods that ask for a fraction.
        computed: of the merge in float32, before it is stored.
        stored: of the merge as it is stored.
    """

    asked: float | None
    computed: float | None
    stored: float | None


_ADVICE = (
    "the change is only a few steps of the stored type large, so that rounding to the nearest "
    "loses or adds a part (rounding: stochastic stores what is asked)"
)

FractionsByModel = Mapping[str, Fractions]


@dataclass(frozen=True)
class AchievedFractions:
    """Fractions of the whole merge and of its layers.

    Attributes:
        whole: by tuned model, over all tensors.
        layers: the same by layer; tensors outside the layers stand under None.
        is_sampled: whether a sixteenth of the entries stands for all.
        step: name of the intermediate merge that they are of; empty for a merge by itself.
    """

    whole: FractionsByModel
    layers: Mapping[int | None, FractionsByModel]
    is_sampled: bool
    step: str = ""

    def rows(self) -> Iterator[tuple[str, str, Fractions]]:
        """Where, of which model, and how much: over all tensors, then layer by layer."""
        for model, fractions in self.whole.items():
            yield "all", model, fractions
        for layer, by_model in self.layers.items():
            where = "outside the layers" if layer is None else f"layer {layer}"
            for model, fractions in by_model.items():
                yield where, model, fractions

    def sentences(self) -> list[str]:
        """A line for each tuned model: what was asked, what is stored, and where much is missing
        what to do."""
        lost = dict(self.lost())
        about = "about " if self.is_sampled else ""
        step_text = f"{self.step}: " if self.step else ""
        lines = []
        for model, fractions in self.whole.items():
            if fractions.stored is None:
                continue
            meant = [("asked", fractions.asked), ("in float32", fractions.computed)]
            words = [f"{word} {value:.4g}" for word, value in meant if value is not None]
            words.append(f"stored {about}{fractions.stored:.4f}")
            line = f"{step_text}{model}: {', '.join(words)} of its change"
            lines.append(f"{line}; {_ADVICE}" if model in lost else line)
        return lines

    def lost(self) -> Iterator[tuple[str, Fractions]]:
        """Tuned models of whose change clearly less, or more, is stored than was meant."""
        for model, fractions in self.whole.items():
            meant = fractions.asked if fractions.asked is not None else fractions.computed
            if meant is None or fractions.stored is None or not meant:
                continue
            if abs(fractions.stored - meant) > _WORTH_SAYING * abs(meant):
                yield model, fractions


@dataclass
class _Sums:
    """Inner products over the tensors of one layer.

    Attributes:
        changes: of the tuned models' changes with each other, `[M, M]`.
        asked: of the changes with what is asked, `[M]`; NaN where nothing is.
        along: of the changes with the change of each merge that was looked at, by its name, `[M]`.
    """

    changes: NDArray[np.float64]
    asked: NDArray[np.float64]
    along: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, other: _Sums) -> None:
        self.changes += other.changes
        self.asked += other.asked
        for name, products in other.along.items():
            self.along[name] = self.along.get(name, 0.0) + products

    def fractions(self, models: tuple[str, ...]) -> dict[str, Fractions]:
        solved = {name: self._solve(products) for name, products in self.along.items()}
        nothing: list[float | None] = [None] * len(models)
        columns = (
            self._solve(self.asked),
            *(solved.get(n, nothing) for n in ("computed", "stored")),
        )
        return {model: Fractions(*values) for model, *values in zip(models, *columns, strict=True)}

    def _solve(self, products: NDArray[np.float64]) -> list[float | None]:
        """Fractions that fit best; None for a model that did not change."""
        sizes = np.diag(self.changes)
        has_changed = sizes > 0.0
        # NaN stands for what no parameter asks for.
        if not np.isfinite(products).all() or not has_changed.any():
            return [None] * sizes.size
        if sizes.size == 1:
            return [float(products[0] / sizes[0])]
        scale = np.sqrt(np.where(has_changed, sizes, 1.0))
        # Lengths are divided out, so that `rcond` speaks of angles alone.
        cosines = self.changes / np.outer(scale, scale)
        found = np.linalg.lstsq(cosines, products / scale, rcond=1e-9)[0] / scale
        return [float(f) if known else None for f, known in zip(found, has_changed, strict=True)]


@dataclass(frozen=True)
class _BlockProducts:
    """Inner products over one block: `changes` and `along` as in `_Sums`, up to entry `stop`."""

    changes: NDArray[np.float64]
    along: NDArray[np.float64]
    stop: int


class AchievedSums:
    """Collects inner products while a merge is made; blocks may come from any thread.

    Args:
        plan: the merge.
        models: models that it reads.
        sampled: whether a sixteenth of the entries is enough, which takes a few percent of the
            time of a merge.
    """

    def __init__(self, plan: MergePlan, models: Models, *, sampled: bool) -> None:
        self._method, self._models, self._is_sampled = plan.method, models, sampled
        self._tasks = {task.name: task for task in plan.tasks if _is_compared(task, models)}
        self._blocks: dict[tuple[str, str, int], _BlockProducts] = {}
        self._lock = threading.Lock()

    def add(self, task: TensorTask, start: int, data: memoryview, dtype: str, what: str) -> None:
        """Compare a block of a merged tensor with the same block of its inputs.

        Args:
            task: the tensor.
            start: place of the block's first entry.
            data: merged entries.
            dtype: their type, by the format's name.
            what: which merge they are of, `stored` or `computed`.
        """
        if task.name not in self._tasks or dtype not in _NUMPY:
            return
        merged = np.frombuffer(data, _NUMPY[dtype])
        base, tuned = task.leader, tuned_of(task)
        checkpoints = ((self._models.checkpoint(s.model), s.tensor) for s in (*tuned, base))
        arrays = [read_entries(checkpoint, tensor) for checkpoint, tensor in checkpoints]
        blocks = [array[start : start + merged.size] for array in arrays]
        parts = [self._sample(block) for block in (*blocks, merged)]
        # The kernel takes rows of one type: bits of bfloat16 where all are, else float32.
        if not all(part.dtype == np.uint16 for part in parts):
            parts = [as_float32(part) for part in parts]
        rows = tuple(map(as_row, parts))
        changes, along = _products(rows)
        # A block of which a part was looked at counts as all of it, beside small ones read whole.
        share = merged.size / max(parts[0].size, 1)
        with self._lock:
            products = _BlockProducts(changes * share, along * share, start + merged.size)
            self._blocks[what, task.name, start] = products

    def _sample(self, block: NDArray[np.generic]) -> NDArray[np.generic]:
        num_runs = block.size // _STRIDE
        if not self._is_sampled or num_runs < 1:
            return block
        return block[: num_runs * _STRIDE].reshape(num_runs, _STRIDE)[:, :_RUN].ravel()

    def result(self) -> AchievedFractions | None:
        """What was found; None where no tensor could be compared."""
        models = tuple(dict.fromkeys(s.model for t in self._tasks.values() for s in tuned_of(t)))
        by_layer: dict[int | None, _Sums] = {}
        by_tensor: dict[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        ends: dict[tuple[str, str], int] = {}
        # In one order, whichever thread was first: sums of floats depend on it.
        for (what, name, start), block_products in sorted(self._blocks.items(), key=lambda b: b[0]):
            changes, along = block_products.changes, block_products.along
            if (what, name) not in by_tensor:
                by_tensor[what, name] = changes, along
            elif start >= ends[what, name]:
                summed_changes, summed_along = by_tensor[what, name]
                by_tensor[what, name] = summed_changes + changes, summed_along + along
            else:
                continue  # of a kernel that failed; the definition then wrote all of it, and anew
            ends[what, name] = block_products.stop
        for (what, name), (changes, along) in by_tensor.items():
            task = self._tasks[name]
            places = [models.index(source.model) for source in tuned_of(task)]
            block = _Sums(np.zeros((len(models), len(models))), np.zeros(len(models)))
            own = np.zeros(len(models))
            own[places] = along
            block.along[what] = own
            if what == "stored":  # both merges see the same changes, which count once
                block.changes[np.ix_(places, places)] = changes
                # What is asked is a sum of changes, so that its inner products follow from theirs.
                block.asked[places] = changes @ _asked(self._method.name, task)
            by_layer.setdefault(task.place.layer, _no_sums(len(models))).add(block)
        if not by_layer:
            return None
        whole = _no_sums(len(models))
        for sums in by_layer.values():
            whole.add(sums)
        # Tensors outside the layers last, as None cannot be compared with numbers.
        layers = sorted(by_layer.items(), key=lambda item: (item[0] is None, item[0] or 0))
        return AchievedFractions(
            whole.fractions(models),
            {layer: sums.fractions(models) for layer, sums in layers},
            self._is_sampled,
        )


def tuned_of(task: TensorTask) -> tuple[Source, ...]:
    """The inputs whose change is looked for; without a base model the first stands for it."""
    return task.sources if task.base is not None else task.sources[1:]


def measure_achieved(
    plan: MergePlan,
    merged: Checkpoint,
    models: Models,
    settings: ComputeSettings,
    *,
    with_computed: bool = True,
) -> AchievedFractions | None:
    """Compare a merge on disk, and the same computed in float32, with the models it is made of.

    Args:
        plan: the merge, with its thresholds.
        merged: the merged model.
        models: models that the plan reads.
        settings: seed and threads of the merge.
        with_computed: whether to compute it; random methods need the seed of the merge for that.

    Returns:
        Fractions over all entries; None where no tensor can be compared, or an input is damaged.
    """
    sums = AchievedSums(plan, models, sampled=False)
    for task in plan.tasks:
        is_there = task.name in merged and merged.info(task.name).shape == task.shape
        if is_there and _is_compared(task, models):
            try:
                _measure_task(plan, task, merged, models, settings, sums, with_computed)
            except NonFiniteError:
                return None
    return sums.result()


def _measure_task(
    plan: MergePlan,
    task: TensorTask,
    merged: Checkpoint,
    models: Models,
    settings: ComputeSettings,
    sums: AchievedSums,
    with_computed: bool,
) -> None:
    dtype, array = merged.info(task.name).dtype, merged.array(task.name)
    if array is None:
        return

    def compare_stored(start: int, stop: int) -> None:
        block: Any = array[start:stop]
        sums.add(task, start, memoryview(block), dtype, "stored")

    def compare_computed(start: int, data: memoryview) -> None:
        sums.add(task, start, data, "F32", "computed")

    settings.workers.each(task.size, compare_stored)
    if with_computed:
        # In float32, so that the difference from what is stored is the loss of rounding.
        run_task(plan.method, task, models, Destination("F32", compare_computed), settings)
    for source in task.inputs:
        models.checkpoint(source.model).give_back(source.tensor)
    merged.give_back(task.name)


def _is_compared(task: TensorTask, models: Models) -> bool:
    """Whether a tensor is merged of one base and tuned models that are told apart."""
    tuned = [source.model for source in tuned_of(task)]
    stored = [models.dtype(source) for source in task.inputs]
    return (
        not task.is_copied
        and bool(tuned)
        and len({*tuned, task.leader.model}) == len(tuned) + 1
        and all(is_float(dtype) and has_array(dtype) for dtype in stored)
    )


def _no_sums(count: int) -> _Sums:
    return _Sums(np.zeros((count, count)), np.zeros(count))


def _products(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inner products of changes: among the tuned models, and of each with the merge.

    Args:
        rows: entries of the tuned models, of the base, and of the merge.
    """
    *tuned, base, merged = rows
    changes, along = np.zeros((len(tuned), len(tuned))), np.zeros(len(tuned))
    for m, row in enumerate(tuned):
        changes[m, m], _, along[m] = _pair_products((row, merged, base))
        for n in range(m):
            changes[m, n] = changes[n, m] = _pair_products((row, tuned[n], base))[2]
    return changes, along


def _pair_products(rows: Rows) -> NDArray[np.float64]:
    """`x·x`, `y·y` and `x·y` of the first two rows less the third, in float64."""
    found = np.zeros(3)
    try:
        compiled.inner_products(rows, found)
        return found
    except compiled.KernelError as error:
        compiled.announce_fallback(str(error).splitlines()[0])
    x, y, base = (as_float32(row) for row in rows)
    x, y = (x - base).astype(np.float64), (y - base).astype(np.float64)
    return np.array([x @ x, y @ y, x @ y])


def _asked(method: str, task: TensorTask) -> NDArray[np.float64]:
    """The fraction of each tuned model that a method's parameters ask for, `[M]`; NaN for methods
    that do not ask for one."""
    parameters = task.parameters
    tuned = tuned_of(task)
    nothing = np.full(len(tuned), np.nan)
    if method == "slerp":
        return np.full(len(tuned), float(parameters["t"]))
    if method not in {"linear", "nuslerp", "task_arithmetic", "lines"}:
        return nothing
    weights = np.asarray(parameters["weight"], np.float64)
    total = float(weights.sum())
    if method == "linear" and not parameters["normalize"] and abs(total - 1.0) > 1e-6:
        return nothing  # the base is scaled as well
    # nuslerp always divides; linear that does not comes here only with a sum of 1.
    if (method in {"linear", "nuslerp"} or parameters["normalize"]) and total:
        weights = weights / total
    if method == "task_arithmetic":
        weights = weights * float(parameters["lambda_"])
    if method == "lines":
        weights = weights * depth_scale(task.place, parameters["alpha"], parameters["beta"])
    # Without a base the first model stands for it (see `tuned_of`), and its weight is left out.
    return weights[len(weights) - len(tuned) :]
