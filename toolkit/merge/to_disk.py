"""Merging to disk: streamed, on all cores, complete or absent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import item_bytes
from toolkit.checkpoint.write import SHARD_BYTES, PlannedTensor, ShardWriter
from toolkit.errors import MergeError, note, warn
from toolkit.load_yaml import JsonObject, JsonView
from toolkit.merge.achieved import AchievedFractions, AchievedSums, measure_achieved
from toolkit.merge.compute import (
    ComputeSettings,
    Destination,
    NonFiniteError,
    blame_input,
    check_device,
    engine_of,
    run_task,
)
from toolkit.merge.config import MergeConfig
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.loadable import refuse_unloadable_merge
from toolkit.merge.methods.checks import ParameterError, at_fault
from toolkit.merge.oddities import oddities
from toolkit.merge.output import merged_config, out_dtype
from toolkit.merge.plan import MergePlan, plan_merge
from toolkit.merge.registry import all_methods
from toolkit.merge.rounding import StochasticRounding, warn_of_no_effect
from toolkit.merge.task import TensorTask
from toolkit.merge.thresholds import with_thresholds
from toolkit.merge.vocab.tokenizer import check_tokenizer, tokenizer_source, write_tokenizer
from toolkit.stage import appearing, refuse_taken


def run_merge(
    config: MergeConfig,
    out: Path,
    *,
    folders: Mapping[str, Path] | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    allow_non_finite: bool = False,
    truncate_embeddings: bool = False,
    device: str = "cpu",
    num_threads: int | None = None,
    step: str = "",
    tell_achieved: Callable[[AchievedFractions], None] | None = None,
    advance: Callable[[float, str], None] | None = None,
) -> MergePlan:
    """Merge models on disk into a new folder.

    Args:
        config: what to do.
        out: the folder to make; it must not exist, or be empty.
        folders: where models stand whose name in the configuration is not their path.
        seed: of random methods.
        shard_bytes: most bytes in one file.
        allow_non_finite: merge tensors that hold NaN or infinity, instead of refusing them.
        truncate_embeddings: cut embeddings to the rows of the shortest; see `vocabulary`.
        device: where the torch definitions compute; on the CPU kernels take their place.
        num_threads: of the kernels; all cores by default. No result depends on it.
        step: name of an intermediate merge, for draws of its own in random methods and stochastic
            rounding.
        tell_achieved: told how much of each model's change was stored, from a sample of the
            entries.
        advance: told how many bytes are written.

    Returns:
        The plan that was run.

    Raises:
        MergeError: models do not fit each other, `out` is taken, or there is no such device.
        CheckpointError: a model cannot be read, or the disk is full.
    """
    refuse_taken(out)
    check_device(device)
    models = Models(folders)
    if config.merge_method not in all_methods() and _is_mergekit_s(config.merge_method):
        from toolkit.merge.fallback import merge_by_mergekit

        for key, is_asked_for, what in (
            ("rounding", config.rounding == "stochastic", "rounds to the nearest"),
            ("--truncate-embeddings", truncate_embeddings, "would cut rows of the merge alone"),
            ("--device", device != "cpu", "computes on the CPU here"),
        ):
            if is_asked_for:
                raise MergeError(
                    f"{key}: {config.merge_method} is merged by mergekit's own engine, which "
                    f"{what}; leave it out."
                )
        if not allow_non_finite:
            note(f"{config.merge_method}: mergekit's engine merges NaN and infinity as they are.")
        with appearing(out) as work:
            return merge_by_mergekit(config, models, work, seed=seed, shard_bytes=shard_bytes)
    prepared = prepare_merge(config, models, truncate_embeddings=truncate_embeddings)
    settings = settings_on_disk(config, seed, num_threads, device, allow_non_finite, step)
    sums = None
    if tell_achieved is not None:
        sums = AchievedSums(prepared.plan, prepared.models, sampled=True)
    with appearing(out) as work:
        _write_tensors(prepared, work, shard_bytes, settings, sums, advance)
        write_side_files(prepared, work)
    # After the folder has appeared: there are no figures of a merge that failed.
    if tell_achieved is not None and sums is not None and (achieved := sums.result()) is not None:
        tell_achieved(replace(achieved, step=step))
    return prepared.plan


def settings_on_disk(
    config: MergeConfig,
    seed: int,
    num_threads: int | None,
    device: str,
    allow_non_finite: bool,
    step: str = "",
) -> ComputeSettings:
    """How a merge to disk computes, whether one process writes all of it or a part."""
    return ComputeSettings(
        seed,
        WorkerThreads(num_threads),
        device,
        allow_non_finite,
        refuse_overflow=True,
        rounding=StochasticRounding(seed, step) if config.rounding == "stochastic" else None,
        step=step,
    )


def achieved_by(
    config: MergeConfig, out: Path, *, folders: Mapping[str, Path] | None = None, seed: int = 0
) -> AchievedFractions | None:
    """How much of each model's change is in a merge that was run, over all of its entries.

    Args:
        config: what was done.
        out: folder of the merged model.
        folders: where models stand whose name in the configuration is not their path.
        seed: of random methods.

    Returns:
        None where nothing can be said, as of merges by mergekit's own engine.
    """
    from toolkit.merge.vocab.vocabulary import plan_with_vocabulary, seen_as_merged

    if config.merge_method not in all_methods():
        return None
    models, workers = Models({**(folders or {}), _RESULT: out}), WorkerThreads()
    merged = models.checkpoint(_RESULT)
    plan, models, _ = plan_with_vocabulary(config, seen_as_merged(config, models))
    plan = with_thresholds(plan, models, workers)
    return measure_achieved(plan, merged, models, ComputeSettings(seed, workers))


_RESULT = "the merged model"


@dataclass(frozen=True)
class PreparedMerge:
    """A merge that was found to be possible; nothing is written yet.

    Attributes:
        config: what was asked for.
        plan: every tensor of the result.
        models: as they are merged, which may be with another vocabulary than on disk.
        dtypes: types written, by the tensor's name.
        model_values: config.json of the result.
        tokenizer: tokenizer.json of a united vocabulary, where one was made.
        num_kept: ids from 0 on that still mean its owner's tokens; None where all do.
    """

    config: MergeConfig
    plan: MergePlan
    models: Models
    dtypes: Mapping[str, str]
    model_values: JsonObject
    tokenizer: JsonView | None
    num_kept: int | None


def prepare_merge(
    config: MergeConfig, models: Models, *, truncate_embeddings: bool
) -> PreparedMerge:
    """Plan a merge and refuse what cannot come out of it as a model that loads."""
    check_tokenizer(config, models)
    for remark in oddities(config):
        warn(remark)
    # Whether a merge loads is judged beside the models as they are stored, with their own rows.
    models_on_disk = models
    united_tokenizer: JsonView | None = None
    num_kept: int | None = None
    # Vocabularies are joined by what takes long to import, so only where one is asked for.
    if truncate_embeddings:
        from toolkit.merge.vocab import vocabulary as vocabularies

        models, num_kept = vocabularies.truncate_embeddings(config, models)
        vocabularies.refuse_cut_tokens(config, models_on_disk, num_kept)
    if tokenizer_source(config) is None:
        plan = plan_merge(config, models.shapes, models.config, models.file)
    else:
        from toolkit.merge.vocab.vocabulary import plan_with_vocabulary

        plan, models, vocabulary = plan_with_vocabulary(config, models)
        if vocabulary is not None:
            united_tokenizer, num_kept = vocabulary.tokenizer, vocabulary.num_kept
    dtypes_by_name = {task.name: out_dtype(config, task, models) for task in plan.tasks}
    if config.rounding == "stochastic":
        warn_of_no_effect({dtypes_by_name[task.name] for task in plan.tasks if not task.is_copied})
    model_values = merged_config(config, plan, models, dtypes_by_name)
    shapes_by_name = {task.name: task.shape for task in plan.tasks}
    refuse_unloadable_merge(model_values, shapes_by_name, models_on_disk, config.model_names())
    return PreparedMerge(
        config, plan, models, dtypes_by_name, model_values, united_tokenizer, num_kept
    )


def _write_tensors(
    merge: PreparedMerge,
    work: Path,
    shard_bytes: int,
    settings: ComputeSettings,
    sums: AchievedSums | None,
    advance: Callable[[float, str], None] | None,
) -> None:
    # Methods that trim over whole models read all of them before the first tensor is merged.
    tasks = with_thresholds(merge.plan, merge.models, settings.workers).tasks
    with ShardWriter(work, planned_tensors(merge), shard_bytes) as writer:
        merge_tensors(merge, tasks, writer, settings, sums, advance)


def planned_tensors(merge: PreparedMerge) -> list[PlannedTensor]:
    """Every tensor of the result, in the order that they are stored in."""
    return [
        PlannedTensor(task.name, merge.dtypes[task.name], task.shape) for task in merge.plan.tasks
    ]


def merge_tensors(
    merge: PreparedMerge,
    tasks: Sequence[TensorTask],
    writer: ShardWriter,
    settings: ComputeSettings,
    sums: AchievedSums | None = None,
    advance: Callable[[float, str], None] | None = None,
) -> None:
    """Merge tensors and write each to its place.

    Args:
        merge: what they are of.
        tasks: those to merge, with the thresholds of methods that trim over whole models.
        writer: holds a place for each of them.
        settings: how to compute.
        sums: what is stored of each model's change, added up while it is written.
        advance: told how many bytes are written.
    """
    dtypes, workers = merge.dtypes, settings.workers
    advance_lock = threading.Lock()

    def write(task: TensorTask) -> None:
        _write_task(merge, task, writer, settings, sums)
        if advance is not None:
            with advance_lock:
                advance(task.size * item_bytes(dtypes[task.name]), task.name)

    def is_fused(task: TensorTask) -> bool:
        dtype = dtypes[task.name]
        engine = engine_of(task, merge.plan.method, merge.models, dtype, settings.device)
        return engine == "kernel" and not settings.allow_non_finite

    # Both lists are settled before any tensor is written: a kernel that fails is given up for
    # all that follow, and a task would then be in neither list.
    fused_tasks = [task for task in tasks if is_fused(task)]
    other_tasks = [task for task in tasks if not is_fused(task)]
    workers.tensors([task.size for task in fused_tasks], lambda i: write(fused_tasks[i]))
    # Definitions hold whole float32 tensors, and torch has threads of its own: one at a time.
    for task in other_tasks:
        write(task)


def _is_mergekit_s(name: str) -> bool:
    from toolkit.merge.fallback import needs_mergekit

    return needs_mergekit(name)


def write_side_files(merge: PreparedMerge, work: Path) -> None:
    # Nobody sees the folder yet, so nothing in it need be atomic; and asking for these few bytes to
    # reach the disk would wait for what others write, while the weights are left to the system.
    model_values = json.dumps(merge.model_values, indent=2) + "\n"
    (work / "config.json").write_text(model_values, encoding="utf-8")
    write_tokenizer(merge.config, merge.models, work, merge.tokenizer, merge.num_kept)
    (work / "merge.yaml").write_text(to_yaml(merge.config), encoding="utf-8")


def _write_task(
    merge: PreparedMerge,
    task: TensorTask,
    writer: ShardWriter,
    settings: ComputeSettings,
    sums: AchievedSums | None,
) -> None:
    dtype, models = merge.dtypes[task.name], merge.models
    entry_bytes = item_bytes(dtype)

    def put(start: int, data: memoryview) -> None:
        writer.write(task.name, start * entry_bytes, data)
        if sums is not None:  # while the block and its inputs are in the processor's cache
            sums.add(task, start, data, dtype, "stored")

    try:
        run_task(merge.plan.method, task, models, Destination(dtype, put), settings)
    except ParameterError as error:
        # The method knew the value alone; model and tensor are known here.
        raise MergeError(at_fault(error, task)) from error
    except NonFiniteError:
        raise MergeError(
            f"{blame_input(task, models)} To merge all the same, allow non-finite values "
            "(--allow-non-finite)."
        ) from None
    # Pages of the mapped files count as memory in use until they are given back.
    for source in task.inputs:
        models.checkpoint(source.model).give_back(source.tensor)


def to_yaml(config: MergeConfig) -> str:
    """The configuration as mergekit reads it."""
    plain = config.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
