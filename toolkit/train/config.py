"""What a recipe says about training. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolkit.config import Fraction, PositiveInt, Section


class ScheduleSection(Section):
    """How the learning rate moves when pre-training resumes on a new domain."""

    peak_lr: Annotated[float, Field(gt=0.0)] = 2e-4
    """Learning rate reached at the end of re-warming; the knob that matters most (Gupta 2023)."""

    rewarm_fraction: Fraction = 0.02
    """Share of all steps spent rising linearly to `peak_lr`; 0.01 to 0.03 is usual."""

    final_fraction: Fraction = 0.1
    """Learning rate at the end, as a share of `peak_lr`; between them it falls along a cosine."""


class OptimizerSection(Section):
    """AdamW (Loshchilov & Hutter 2019)."""

    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Applied to matrices and embeddings; norms and biases are left alone."""


class TrainSection(Section):
    """Continued pre-training of all parameters."""

    epochs: PositiveInt = 1
    """Passes over the blocks; each has its own order."""

    blocks_per_step: PositiveInt = 2
    """Blocks in one optimizer step, over all processes together."""

    micro_batch_blocks: PositiveInt = 2
    """Blocks in one forward pass of one process; gradients accumulate up to `blocks_per_step`."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: float32 parameters, bfloat16 matrix products (autocast). `fp32`: all float32."""

    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this norm where they exceed it."""

    save_every_steps: PositiveInt = 50
    """How often the state is written from which an interrupted run continues."""

    schedule: ScheduleSection = ScheduleSection()
    optimizer: OptimizerSection = OptimizerSection()
