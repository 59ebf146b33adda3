"""How fast this machine trains: a few real steps of the model, or products of its shapes.

The steps are the loop's own computation (loss, backward pass, clipping, AdamW) on real blocks.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.devices import CPU, Device
from toolkit.plan.shape import recomputed, training_flops
from toolkit.train.activations import checkpoint_activations
from toolkit.train.config import TrainSection
from toolkit.train.fuse import fuse, may_fuse
from toolkit.train.model import NextTokenLoss
from toolkit.train.packing_probe import choose_packing
from toolkit.train.precision import is_low, precision_on, products_dtype
from toolkit.train.trainable import parameter_groups, plain_model, prepare_model


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        tokens_per_second: positions in training; None where only products were timed.
        flops: operations a second that training reaches here.
        how: in words.
        share: of the processors that the measurement had; the rest went to other work.
    """

    tokens_per_second: float | None
    flops: float
    how: str
    share: float = 1.0


def time_steps(
    model: Any,
    section: TrainSection,
    shape: ShapeSection,
    tokens: Sequence[int],
    sequence_length: int,
    *,
    seconds: float,
) -> Speed:
    """Time training steps of a model; it is changed, so give one that nobody needs.

    Args:
        model: a causal language model with float32 parameters.
        section: as in the recipe.
        shape: of the model.
        tokens: any; blocks are cut from them, again and again.
        sequence_length: length of a block.
        seconds: how long to measure, after one step that is not counted.
    """
    section = precision_on(section, "CPU")
    low = is_low(section)
    model = prepare_model(model, section)
    dtype = products_dtype(section)
    fused = may_fuse(section, "cpu", sharded=False) and fuse(plain_model(model), dtype)
    kind = section.gradient_checkpointing  # as in the loop
    checkpoint_activations(plain_model(model), "none" if fused and kind == "selective" else kind)
    loss_module = NextTokenLoss(model.train(), dtype, fused=fused)
    loss_module.layout = choose_packing(
        loss_module,
        sequence_length // 2,
        lambda: torch.autocast("cpu", torch.bfloat16, enabled=low),
    ).layout
    settings = section.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay, settings.embedding_lr_scale),
        lr=1e-6,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
    rows = min(section.micro_batch_size, section.global_batch_size)
    micro_batches = -(-section.global_batch_size // rows)
    need = rows * (sequence_length + 1)
    flat = torch.tensor((list(tokens) * (need // max(1, len(tokens)) + 1))[:need])
    both = flat.reshape(rows, sequence_length + 1)
    inputs, labels = both[:, :-1].contiguous(), both[:, 1:].contiguous()
    # Documents of a usual length, so that the mask is what it is in packed blocks.
    segments = (torch.arange(sequence_length) // max(1, sequence_length // 3)).expand(rows, -1)

    def forward_backward() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = loss_module(inputs, labels, segments)
            (loss / labels.numel()).backward()
        return time.perf_counter() - began

    def update() -> float:
        began = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    forward_backward()
    update()
    passes: list[float] = []
    updates: list[float] = []
    began = time.perf_counter(), time.process_time()
    stop = began[0] + seconds
    while len(passes) < 2 or time.perf_counter() < stop:
        passes.append(forward_backward())
        updates.append(update())
        if len(passes) >= 50:
            break
    had = (time.process_time() - began[1]) / (time.perf_counter() - began[0])
    step = micro_batches * statistics.median(passes) + statistics.median(updates)
    positions = micro_batches * rows * sequence_length
    rank = section.lora.rank if section.lora is not None else None
    again = recomputed(section.gradient_checkpointing)
    each = training_flops(shape, sequence_length, lora_rank=rank, again=again)
    speed = positions / step
    how = f"{len(passes)} training steps of the model were timed here"
    return Speed(speed, speed * each, how, min(1.0, had / torch.get_num_threads()))


def time_products(shape: ShapeSection, tokens: int, *, seconds: float, low: bool) -> Speed:
    """Time matrix products of a model's shapes, where the model itself is not here.

    Args:
        shape: of the model.
        tokens: rows of the products.
        seconds: how long.
        low: bfloat16, else float32.
    """
    kind = torch.bfloat16 if low else torch.float32
    h, width = shape.hidden_size, shape.moe_intermediate_size or shape.intermediate_size
    rows = max(1, min(tokens, int(2e9 / (2.0 * h * width)) + 1))
    x = torch.randn(rows, h, dtype=kind)
    up, down = torch.randn(h, width, dtype=kind), torch.randn(width, h, dtype=kind)
    (x @ up) @ down  # the first is slower
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        began = time.perf_counter()
        (x @ up) @ down
        times.append(time.perf_counter() - began)
        if len(times) >= 200:
            break
    # Of what products alone reach, training with attention, norms and AdamW reached 0.58 to 0.60
    # where blocks are fused (SmolLM2, processor seconds of one core, dev/LOG.md); elsewhere
    # it is less.
    flops = 0.5 * 4.0 * rows * h * width / statistics.median(times)
    return Speed(None, flops, "half of what matrix products of the model's shapes reach here")


def this_machine(speed: Speed | None) -> Device:
    """This machine's CPU as a device: its memory, and the speed that was measured."""
    flops = speed.flops if speed is not None else float("nan")
    return Device(CPU, _memory_bytes(), flops, float("nan"), 0.0, 1.0, is_measured=True)


def _memory_bytes() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return float("nan")
