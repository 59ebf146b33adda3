"""Merging to disk: complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from toolkit.checkpoint.folder import copy_side_files
from toolkit.checkpoint.read import Checkpoint, open_checkpoint
from toolkit.checkpoint.write import SHARD_BYTES, PlannedTensor, ShardWriter, tensor_bytes
from toolkit.errors import MergeError
from toolkit.manifest import write_atomically, write_json
from toolkit.merge.compute import compute_tensor
from toolkit.merge.config import MergeConfig
from toolkit.merge.plan import MergePlan, Shapes, TensorTask, plan_merge


def run_merge(
    config: MergeConfig,
    out: Path,
    *,
    folders: Mapping[str, Path] | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    allow_non_finite: bool = False,
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
        advance: told how many bytes are written.

    Returns:
        The plan that was run.

    Raises:
        MergeError: models do not fit each other, or `out` is taken.
        CheckpointError: a model cannot be read, or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergeError(f"{out}: exists and is not empty; give another folder or remove it.")
    opened: dict[str, Checkpoint] = {}

    def checkpoint(name: str) -> Checkpoint:
        if name not in opened:
            opened[name] = open_checkpoint((folders or {}).get(name, Path(name)))
        return opened[name]

    def shapes(name: str) -> Shapes:
        return {tensor: checkpoint(name).info(tensor).shape for tensor in checkpoint(name).names}

    plan = plan_merge(config, shapes)
    leader = checkpoint(config.base_model or config.model_names()[0])
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of an earlier call that was killed
    work.mkdir(parents=True)
    try:
        dtypes = {task.name: _out_dtype(config, task, checkpoint) for task in plan.tasks}
        planned = [PlannedTensor(t.name, dtypes[t.name], t.shape) for t in plan.tasks]
        with ShardWriter(work, planned, shard_bytes) as writer:
            for task in plan.tasks:
                merged = _merge_task(
                    plan, task, checkpoint, seed, dtypes[task.name], allow_non_finite
                )
                data = tensor_bytes(merged)
                writer.write(task.name, 0, data)
                if advance is not None:
                    advance(len(data), task.name)
        _write_config(leader.folder, work, config, plan)
        copy_side_files(leader.folder, work)
        with write_atomically(work / "merge.yaml") as file:
            file.write(to_yaml(config))
        if out.exists():
            out.rmdir()
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return plan


def to_yaml(config: MergeConfig) -> str:
    """The configuration as mergekit reads it."""
    plain = config.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _merge_task(
    plan: MergePlan,
    task: TensorTask,
    checkpoint: Callable[[str], Checkpoint],
    seed: int,
    dtype: torch.dtype,
    allow_non_finite: bool,
) -> torch.Tensor:
    everyone = [*task.sources, *([task.base] if task.base is not None else [])]
    for source in everyone:
        tensor = checkpoint(source.model).tensor(source.tensor)
        finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        if not finite and not allow_non_finite:
            info = checkpoint(source.model).info(source.tensor)
            raise MergeError(
                f"{source.tensor}: holds NaN or infinity in {info.file}; the model is damaged. "
                "To merge all the same, allow non-finite values."
            )
    tensors = [checkpoint(s.model).tensor(s.tensor) for s in task.sources]
    base = checkpoint(task.base.model).tensor(task.base.tensor) if task.base is not None else None
    merged = compute_tensor(plan.method, task, tensors, base, seed=seed, dtype=dtype)
    for source in everyone:
        checkpoint(source.model).give_back(source.tensor)
    return merged


def _out_dtype(
    config: MergeConfig, task: TensorTask, checkpoint: Callable[[str], Checkpoint]
) -> torch.dtype:
    leader = task.base or task.sources[0]
    stored = checkpoint(leader.model).info(leader.tensor).dtype
    name = config.out_dtype or config.dtype
    if name is None or not stored.is_floating_point:
        return stored
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _write_config(source: Path, target: Path, config: MergeConfig, plan: MergePlan) -> None:
    path = source / "config.json"
    if not path.is_file():
        raise MergeError(f"{source}: has no config.json; give a whole model folder.")
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.slices is not None and "num_hidden_layers" in values:
        values["num_hidden_layers"] = plan.num_layers
    if (dtype := config.out_dtype or config.dtype) is not None:
        values.pop("torch_dtype", None)
        values["dtype"] = dtype
    write_json(target / "config.json", values)
