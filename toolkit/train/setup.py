"""What every step of a training run computes with: model, loss, optimizer, processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from toolkit.errors import ToolkitError
from toolkit.train.activations import checkpoint_activations
from toolkit.train.config import TrainSection
from toolkit.train.fuse import fuse, may_fuse
from toolkit.train.heap import give_back_freed_memory, place_moments
from toolkit.train.model import NextTokenLoss, call_on_model, choose_attention, has_plain_head
from toolkit.train.precision import is_low, products_dtype
from toolkit.train.processes import add_up_in_float32, on_cpu, refuse_parallelism
from toolkit.train.trainable import parameter_groups, plain_model, refuse_active_blocks

_WAIT = timedelta(hours=24)
"""Processes wait for the first one as long as its scoring and its writing take."""


@dataclass(frozen=True)
class TrainingSetup:
    """A model ready to be trained.

    Attributes:
        section: settings, with the precision settled.
        accelerator: device and processes.
        loss_module: model and loss as accelerate prepared them, DDP or FSDP around them.
        plain_loss: the same without what accelerate put around it.
        optimizer: AdamW as accelerate prepared it.
    """

    section: TrainSection
    accelerator: Accelerator
    loss_module: Any
    plain_loss: NextTokenLoss
    optimizer: Any

    @property
    def model(self) -> Any:
        """The model that is trained, adapters included."""
        return self.plain_loss.model


def set_up_training(
    model: Any,
    section: TrainSection,
    work: Path,
    *,
    accelerator: Accelerator | None = None,
    fill: Callable[[], None] | None = None,
) -> TrainingSetup:
    """Put a model, its loss and its optimizer on the devices of all processes.

    Args:
        model: a causal language model with float32 parameters, as from `prepare_model`.
        section: settings, with the precision settled.
        work: folder that trackers write to.
        accelerator: device and processes, where they were asked for before the model was made.
        fill: reads the parameters of a model without memory once they are shared out.

    Raises:
        ToolkitError: there are more processes than blocks in a step.
        ConfigError: the attention that the recipe names is not to be had here.
    """
    accelerator = accelerator or start_accelerator(section, work)
    device_kind = accelerator.device.type
    dtype = products_dtype(section)
    inner_model = plain_model(model)
    is_fused = may_fuse(section, device_kind, sharded=bool(accelerator.is_fsdp2))
    # Fused before the loss is wrapped: DDP and FSDP must see the forward pass that is used.
    is_fused = is_fused and fuse(inner_model, dtype)
    # Fused blocks already keep only what selective checkpointing would.
    checkpointing = section.gradient_checkpointing
    checkpoint_activations(
        inner_model, "none" if is_fused and checkpointing == "selective" else checkpointing
    )
    if section.compile:
        inner_model.base_model.compile()
    loss_module = NextTokenLoss(model.train(), dtype, fused=is_fused)
    choose_attention(inner_model, section.attn_implementation, device_kind, section.precision)
    # Before `prepare`, which takes the plugin's policy as it is by then.
    add_up_in_float32(accelerator)
    if fill is None:
        optimizer = _make_optimizer(model, section)
        # After the parameters have their place and before any activation does.
        if is_fused:
            place_moments(optimizer)
        loss_module, optimizer = accelerator.prepare(loss_module, optimizer)
    else:
        loss_module = _share_out(loss_module, accelerator)
        fill()
        optimizer = accelerator.prepare_optimizer(_make_optimizer(model, section))
    plain_loss = accelerator.unwrap_model(loss_module)
    if fill is not None:  # questions that a model without memory could not answer
        plain_loss.fused_head = call_on_model(
            lambda trained: has_plain_head(plain_model(trained)), loss_module, plain_loss
        )
        if section.block_expansion is not None:
            call_on_model(
                lambda trained: refuse_active_blocks(plain_model(trained)), loss_module, plain_loss
            )
    return TrainingSetup(section, accelerator, loss_module, plain_loss, optimizer)


def _make_optimizer(model: Any, section: TrainSection) -> torch.optim.AdamW:
    settings = section.optimizer
    # fused: one pass over parameters and moments, where a pass for each operation would be bound by
    # memory.
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay, settings.embedding_lr_scale),
        lr=section.schedule.peak_lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def _share_out(loss_module: NextTokenLoss, accelerator: Accelerator) -> Any:
    """The loss with its parameters, which have no memory yet, shared out among processes."""
    if accelerator.device.type == "cpu":
        give_back_freed_memory()
    # Its own way of filling a model begins with a whole copy in the first process.
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # accelerate takes a model with an optimizer only, and finds the optimizer's parameters again by
    # their memory, of which there is none yet: the real one is made when they are filled.
    stand_in = torch.optim.SGD([next(loss_module.parameters())], lr=0.0)
    return accelerator.prepare(loss_module, stand_in)[0]


def start_accelerator(section: TrainSection, work: Path) -> Accelerator:
    """Device and processes of a run, with the precision of settled settings.

    Raises:
        ToolkitError: there are more processes than blocks in a step.
        ConfigError: the launcher asks for a kind of parallelism that training has no way for.
    """
    refuse_parallelism()
    accelerator = Accelerator(
        # Without it accelerate starts no group of processes on CPUs: see `on_cpu`.
        cpu=on_cpu(),
        mixed_precision="bf16" if is_low(section) else "no",
        log_with=list(section.trackers) or None,
        project_dir=str(work) if section.trackers else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_WAIT)],
    )
    if accelerator.num_processes > section.global_batch_size:
        raise ToolkitError(
            f"train.global_batch_size: {section.global_batch_size} blocks cannot be shared by "
            f"{accelerator.num_processes} processes; raise it, or start fewer."
        )
    return accelerator
