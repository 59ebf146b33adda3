"""Making a mixture of experts on disk: streamed, complete or absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from torch import Tensor

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import TORCH_NAMES, item_bytes
from toolkit.checkpoint.side_files import copy_tokenizer_files
from toolkit.checkpoint.write import SHARD_BYTES, PlannedTensor, ShardWriter, tensor_bytes
from toolkit.errors import MergeError
from toolkit.merge.compute import is_finite
from toolkit.merge.loadable import refuse_unloadable_merge
from toolkit.merge.moe.config import MoeConfig
from toolkit.merge.moe.plan import MoePlan, MoeTensor, plan_moe
from toolkit.merge.moe.router import alike_layers, generator_of, router_rows
from toolkit.progress import say
from toolkit.stage import appearing, refuse_taken

_BLOCK = 1 << 22
"""Entries held in memory at one time. Noise is drawn block by block, so it depends on this."""


def run_moe(
    config: MoeConfig,
    out: Path,
    *,
    folders: Mapping[str, Path] | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[float, str], None] | None = None,
) -> MoePlan:
    """Make a mixture of experts from dense models (Komatsuzaki et al. 2023, sparse upcycling).

    Attention, norms and embeddings are the base's, experts the feed-forward layers of the models
    given. Where all experts are the base, logits are the base's, whatever the router says.

    Args:
        config: what to make.
        out: the folder to make; it must not exist, or be empty.
        folders: where models stand whose name in the configuration is not their path.
        seed: of random rows and noise; the tensor's name enters too.
        shard_bytes: most bytes in one file.
        advance: told how many bytes are written.

    Returns:
        The plan that was run.

    Raises:
        MergeError: models do not fit each other, hold NaN or infinity, or `out` is taken.
        CheckpointError: a model cannot be read, or the disk is full.

    Reference:
        Komatsuzaki et al. 2023, https://arxiv.org/abs/2212.05055.
    """
    refuse_taken(out)
    models = Models(folders)
    plan = plan_moe(config, models)
    with appearing(out) as work:
        alike_numbers = write_moe(
            config, plan, models, work, seed=seed, shard_bytes=shard_bytes, advance=advance
        )
        if alike_numbers:
            say(
                f"  routers of {len(alike_numbers)} of {len(plan.sparse_layers)} layers have "
                "nearly the same row for two experts: their prompts are too similar"
            )
        (work / "merge-moe.yaml").write_text(_to_yaml(config), encoding="utf-8")
    return plan


def write_moe(
    config: MoeConfig,
    plan: MoePlan,
    models: Models,
    work: Path,
    *,
    seed: int,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[float, str], None] | None = None,
) -> list[int]:
    """Write a planned mixture into an empty folder.

    Returns:
        Layers in whose router two experts have nearly the same row.
    """
    shapes_by_name = {tensor.name: tensor.shape for tensor in plan.tensors}
    refuse_unloadable_merge(plan.values, shapes_by_name, models, [config.base_model])
    rows_by_name = router_rows(config, plan, models, seed=seed)
    planned_tensors = [PlannedTensor(t.name, plan.dtype, t.shape) for t in plan.tensors]
    with ShardWriter(work, planned_tensors, shard_bytes) as writer:
        for tensor in plan.tensors:
            _write(tensor, plan, models, writer, rows_by_name.get(tensor.name), seed)
            if advance is not None:
                advance(tensor.size * item_bytes(plan.dtype), tensor.name)
    (work / "config.json").write_text(
        json.dumps(plan.values, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    for folder in models.tokenizer_folders(config.base_model):
        copy_tokenizer_files(folder, work)
    return alike_layers(plan, rows_by_name)


def _write(
    tensor: MoeTensor,
    plan: MoePlan,
    models: Models,
    writer: ShardWriter,
    rows: Tensor | None,
    seed: int,
) -> None:
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[plan.dtype])
    entry_bytes = item_bytes(plan.dtype)
    if tensor.source is None:
        assert rows is not None  # noqa: S101  (a plan's routers all have rows)
        writer.write(tensor.name, 0, tensor_bytes(rows.to(dtype)))
        return
    flat_source = models.read(tensor.source).reshape(-1)
    generator = generator_of(seed, tensor.name) if tensor.noise_scale else None
    for first_entry in range(0, tensor.size, _BLOCK):
        source_block = flat_source[first_entry : first_entry + _BLOCK]
        changed_block = source_block
        if generator is not None:
            noise_block = torch.randn(source_block.shape, generator=generator)
            changed_block = source_block.float() + noise_block * tensor.noise_scale
        if tensor.scale != 1.0:
            changed_block = changed_block.float() * tensor.scale
        changed_block = changed_block.to(dtype)
        # The source is checked by itself: infinity times a scale of 0 would look like a fault of
        # ours.
        if not is_finite(source_block):
            file = models.checkpoint(tensor.source.model).damaged_file(tensor.source.tensor)
            raise MergeError(
                f"{tensor.source.tensor}: holds NaN or infinity in {file}; the model is damaged."
            )
        if not is_finite(changed_block):
            raise MergeError(
                f"{tensor.name}: does not fit into {TORCH_NAMES[plan.dtype]}; give a wider dtype."
            )
        # Another thread may write these bytes later: nobody may change them after this, and where
        # nothing was changed they are the mapped file itself.
        writer.write(tensor.name, first_entry * entry_bytes, tensor_bytes(changed_block))
    models.checkpoint(tensor.source.model).give_back(tensor.source.tensor)


def _to_yaml(config: MoeConfig) -> str:
    config_values = config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    # Said even where it is the default: mergekit has none.
    config_values["gate_mode"] = config.gate_mode
    return yaml.safe_dump(config_values, sort_keys=False, allow_unicode=True)


def describe_moe(config: MoeConfig, plan: MoePlan) -> str:
    """A plan in words."""
    active_fraction = plan.num_active / plan.num_parameters
    num_layers = int(plan.values["num_hidden_layers"])
    expert_names = [expert.source_model for expert in config.experts]
    lines = [
        f"{plan.layout.architecture}: {len(expert_names)} experts, {config.experts_per_token} a "
        f"token, in {len(plan.sparse_layers)} of {num_layers} layers; router {config.gate_mode}",
        f"  {plan.num_parameters:,} parameters, {plan.num_active:,} active "
        f"({active_fraction:.0%}); {len(plan.tensors)} tensors, {plan.num_bytes / 1e9:.3f} GB of "
        f"{TORCH_NAMES[plan.dtype]}",
        f"  attention, norms, embeddings: {config.base_model}",
    ]
    lines += [f"  expert {number}: {name}" for number, name in enumerate(expert_names)]
    lines += [f"  shared expert: {expert.source_model}" for expert in config.shared_experts]
    if plan.layout.shared and not config.shared_experts:
        lines.append("  shared expert: adds nothing until it is trained")
    if config.experts_per_token == 1:
        lines.append(
            "  one expert a token has weight 1 whatever the router says, so the router learns from "
            "its balancing loss alone"
        )
    distinct_experts = {(e.source_model, e.noise_scale or 0.0) for e in config.experts}
    if len(distinct_experts) == 1 and not config.experts[0].noise_scale and len(expert_names) > 1:
        lines.append(
            "  all experts are the same: it computes what they do until it is trained, and the "
            "router alone makes them diverge (or give noise_scale)"
        )
    return "\n".join(lines)
