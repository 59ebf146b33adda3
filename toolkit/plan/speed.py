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
from toolkit.plan.shape import expert_width, recomputed, training_flops
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
        tokens_per_second: positions per second in training; None where only products were timed.
        flops: operations per second that training reaches here.
        how: what was timed, in words.
        share: part of the processors that the measurement had; the rest went to other work.
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
        model: causal language model with float32 parameters.
        section: training section of the recipe.
        shape: measures of the model.
        tokens: any tokens; blocks are cut from them, again and again.
        sequence_length: length of a block.
        seconds: how long to measure, after one step that is not counted.
    """
    section = precision_on(section, "CPU")
    step = _TimedStep(model, section, tokens, sequence_length)
    step.forward_backward()
    step.update()
    # The step before was not counted: it allocates memory and moments that later ones find.
    pass_seconds: list[float] = []
    update_seconds: list[float] = []
    began, began_processor = time.perf_counter(), time.process_time()
    while len(pass_seconds) < 2 or time.perf_counter() < began + seconds:
        pass_seconds.append(step.forward_backward())
        update_seconds.append(step.update())
        if len(pass_seconds) >= 50:
            break
    # Processor seconds over seconds: below the number of threads where other programs took part.
    num_busy = (time.process_time() - began_processor) / (time.perf_counter() - began)
    # Put together from medians: a step of many micro-batches would take too long to be timed
    # itself, and one disturbed pass must not count.
    micro_batches = -(-section.global_batch_size // step.rows)
    step_seconds = micro_batches * statistics.median(pass_seconds)
    step_seconds += statistics.median(update_seconds)
    tokens_per_second = micro_batches * step.rows * sequence_length / step_seconds
    lora_rank = section.lora.rank if section.lora is not None else None
    again = recomputed(section.gradient_checkpointing)
    flops_per_token = training_flops(shape, sequence_length, lora_rank=lora_rank, again=again)
    return Speed(
        tokens_per_second,
        tokens_per_second * flops_per_token,
        f"{len(pass_seconds)} training steps of the model were timed here",
        min(1.0, num_busy / torch.get_num_threads()),
    )


class _TimedStep:
    """One micro-batch of the loop's own computation, and one update of its optimizer.

    Args:
        model: causal language model with float32 parameters.
        section: training section, its precision settled.
        tokens: tokens that blocks are cut from.
        sequence_length: length of a block.
    """

    def __init__(
        self, model: Any, section: TrainSection, tokens: Sequence[int], sequence_length: int
    ) -> None:
        self._model = prepare_model(model, section)
        self._max_norm, self._low = section.max_grad_norm, is_low(section)
        dtype = products_dtype(section)
        fused = may_fuse(section, "cpu", sharded=False) and fuse(plain_model(self._model), dtype)
        kind = section.gradient_checkpointing
        kind = "none" if fused and kind == "selective" else kind  # as in the loop
        checkpoint_activations(plain_model(self._model), kind)
        self._loss = NextTokenLoss(self._model.train(), dtype, fused=fused)
        self._loss.layout = choose_packing(self._loss, sequence_length // 2, self._autocast).layout
        settings = section.optimizer
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self._model, settings.weight_decay, settings.embedding_lr_scale),
            # So small that the model stays a sane one, however long it is timed.
            lr=1e-6,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )
        self.rows = min(section.micro_batch_size, section.global_batch_size)
        needed = self.rows * (sequence_length + 1)
        # Repeated until they fill a micro-batch: what is timed depends on their number.
        repeated = (list(tokens) * (needed // max(1, len(tokens)) + 1))[:needed]
        blocks = torch.tensor(repeated).reshape(self.rows, sequence_length + 1)
        self._inputs, self._labels = blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()
        # Documents of a usual length, so that the mask is what it is in packed blocks.
        segments = torch.arange(sequence_length) // max(1, sequence_length // 3)
        self._segments = segments.expand(self.rows, -1)

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._low)

    def forward_backward(self) -> float:
        """Seconds of one micro-batch."""
        began = time.perf_counter()
        with self._autocast():
            loss = self._loss(self._inputs, self._labels, self._segments)
            (loss / self._labels.numel()).backward()
        return time.perf_counter() - began

    def update(self) -> float:
        """Seconds of one update."""
        began = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - began


def time_products(shape: ShapeSection, tokens: int, *, seconds: float, low: bool) -> Speed:
    """Time matrix products of a model's shapes, where the model itself is not here.

    Args:
        shape: measures of the model.
        tokens: rows of the products at most.
        seconds: how long to measure.
        low: bfloat16, else float32.
    """
    dtype = torch.bfloat16 if low else torch.float32
    h, width = shape.hidden_size, expert_width(shape)
    # No single product over a few gigaflops: the time would be up after the first.
    rows = max(1, min(tokens, int(2e9 / (2.0 * h * width)) + 1))
    x = torch.randn(rows, h, dtype=dtype)
    up, down = torch.randn(h, width, dtype=dtype), torch.randn(width, h, dtype=dtype)
    (x @ up) @ down  # the first is slower
    product_seconds: list[float] = []
    stop_time = time.perf_counter() + seconds
    while len(product_seconds) < 3 or time.perf_counter() < stop_time:
        began = time.perf_counter()
        (x @ up) @ down
        product_seconds.append(time.perf_counter() - began)
        if len(product_seconds) >= 200:
            break
    # Of what products alone reach, training with attention, norms and AdamW reached 0.58 to 0.60
    # where blocks are fused (SmolLM2, processor seconds of one core, dev/LOG.md); elsewhere
    # it is less.
    flops = 0.5 * 4.0 * rows * h * width / statistics.median(product_seconds)
    return Speed(None, flops, "half of what matrix products of the model's shapes reach here")


def this_machine(speed: Speed | None) -> Device:
    """This machine's CPU as a device: its memory, and the speed that was measured."""
    flops = speed.flops if speed is not None else float("nan")
    return Device(CPU, _memory_bytes(), flops, 0.0, 1.0, is_measured=True)


def _memory_bytes() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return float("nan")
