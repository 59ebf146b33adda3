"""Merging to disk: streamed, on all cores, complete or absent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import item_bytes
from toolkit.checkpoint.write import SHARD_BYTES, PlannedTensor, ShardWriter
from toolkit.errors import MergeError, warn
from toolkit.merge.compute import (
    NonFiniteError,
    check_device,
    engine_of,
    is_finite,
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

        with appearing(out) as work:
            return merge_by_mergekit(config, models, work, seed=seed, shard_bytes=shard_bytes)
    check_tokenizer(config, models)
    for remark in oddities(config):
        warn(remark)
    united, own = None, models
    if truncate_embeddings:
        from toolkit.merge.vocab import vocabulary as vocabularies

        models = vocabularies.truncate_embeddings(config, models)
    if tokenizer_source(config) is None:  # vocabularies stay as they are, and their part unloaded
        plan = plan_merge(config, models.shapes, models.config, models.file)
    else:
        from toolkit.merge.vocab.vocabulary import plan_with_vocabulary

        plan, models, vocabulary = plan_with_vocabulary(config, models)
        united = vocabulary.tokenizer if vocabulary is not None else None
    dtypes = {task.name: out_dtype(config, task, models) for task in plan.tasks}
    values = merged_config(config, plan, models, dtypes)
    shapes = {task.name: task.shape for task in plan.tasks}
    refuse_unloadable_merge(values, shapes, own, config.model_names())
    workers = WorkerThreads(num_threads)
    told = threading.Lock()
    with appearing(out) as work:
        plan = with_thresholds(plan, models, workers)
        planned = [PlannedTensor(t.name, dtypes[t.name], t.shape) for t in plan.tasks]
        with ShardWriter(work, planned, shard_bytes) as writer:

            def write(task: TensorTask) -> None:
                dtype = dtypes[task.name]
                _write_task(
                    plan,
                    task,
                    models,
                    writer,
                    dtype,
                    workers,
                    seed=seed,
                    device=device,
                    allow_non_finite=allow_non_finite,
                )
                if advance is not None:
                    with told:
                        advance(task.size * item_bytes(dtype), task.name)

            def is_fused(task: TensorTask) -> bool:
                engine = engine_of(task, plan.method, models, dtypes[task.name], device)
                return engine == "kernel" and not allow_non_finite

            fused = [task for task in plan.tasks if is_fused(task)]
            # Settled before any is written: a kernel that fails is given up for those that follow.
            others = [task for task in plan.tasks if not is_fused(task)]
            workers.tensors([task.size for task in fused], lambda i: write(fused[i]))
            for task in others:  # one at a time, as they take memory
                write(task)
        _write_side_files(config, models, values, work, united)
    return plan


def _is_mergekit_s(name: str) -> bool:
    from toolkit.merge.fallback import needs_mergekit

    return needs_mergekit(name)


def _write_side_files(
    config: MergeConfig,
    models: Models,
    values: Mapping[str, Any],
    work: Path,
    united: Mapping[str, Any] | None,
) -> None:
    # Nobody sees the folder yet, so nothing in it need be atomic; and asking for these few bytes to
    # reach the disk would wait for what others write, while the weights are left to the system.
    (work / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(config, models, work, united)
    (work / "merge.yaml").write_text(to_yaml(config), encoding="utf-8")


def _write_task(
    plan: MergePlan,
    task: TensorTask,
    models: Models,
    writer: ShardWriter,
    dtype: str,
    workers: WorkerThreads,
    **options: Any,
) -> None:
    entry = item_bytes(dtype)

    def put(start: int, data: memoryview) -> None:
        writer.write(task.name, start * entry, data)

    try:
        run_task(
            plan.method,
            task,
            models,
            put,
            dtype=dtype,
            workers=workers,
            refuse_overflow=True,
            **options,
        )
    except ParameterError as error:
        raise MergeError(at_fault(error, task)) from error
    except NonFiniteError:
        for source in task.inputs:
            if not is_finite(models.read(source)):
                file = models.checkpoint(source.model).damaged_file(source.tensor)
                raise MergeError(
                    f"{source.tensor}: holds NaN or infinity in {file}; the model is damaged. "
                    "To merge all the same, allow non-finite values (--allow-non-finite)."
                ) from None
        raise
    for source in task.inputs:
        models.checkpoint(source.model).give_back(source.tensor)


def to_yaml(config: MergeConfig) -> str:
    """The configuration as mergekit reads it."""
    plain = config.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
