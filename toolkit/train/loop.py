"""THE training loop: continued pre-training on packed blocks, on one device or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from toolkit.checkpoint.resume import latest_step, load_state, save_state
from toolkit.data.blocks import Batch, Blocks
from toolkit.errors import ToolkitError
from toolkit.progress import progress
from toolkit.train.config import TrainSection
from toolkit.train.metrics import MetricsLog
from toolkit.train.model import NextTokenLoss
from toolkit.train.schedule import learning_rate

StepHook = Callable[[int, float], None]


def train(
    model: Any, blocks: Blocks, section: TrainSection, *, seed: int, work: Path
) -> dict[str, Any]:
    """Train all parameters of `model` in place.

    Args:
        model: a causal language model with float32 parameters.
        blocks: what to train on.
        section: settings.
        seed: orders the blocks; the same seed gives the same run, resumed or not.
        work: where metrics and resume states are kept.

    Returns:
        Figures of the run: steps, tokens, first and last loss, seconds.
    """
    bf16 = section.precision == "bf16"
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    torch.manual_seed(seed)
    loss_module = NextTokenLoss(model.train(), torch.bfloat16 if bf16 else torch.float32)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, section.optimizer.weight_decay),
        lr=section.schedule.peak_lr,
        betas=(section.optimizer.beta1, section.optimizer.beta2),
        eps=section.optimizer.epsilon,
        fused=True,
    )
    loss_module, optimizer = accelerator.prepare(loss_module, optimizer)

    steps = plan_steps(blocks, section.blocks_per_step)
    num_steps = len(steps)
    first_step = latest_step(work) or 0
    if first_step:
        load_state(work, first_step, model, optimizer)
    num_targets = 0
    began = time.monotonic()
    with (
        MetricsLog(work / "metrics.jsonl", keep_steps=first_step) as metrics,
        progress("training", num_steps, done=first_step) as advance,
    ):
        for step in range(first_step, num_steps):
            step_began = time.monotonic()
            stage, positions = blocks.stages[steps[step].stage], steps[step].positions
            batch = stage.read(positions)
            step_targets = batch.num_targets
            rate = learning_rate(step, num_steps, section.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate

            # Every target weighs the same, whichever micro-batch or process it is in: losses are
            # summed, and divided by the targets of the whole step. DDP averages, hence the factor.
            mine = range(accelerator.process_index, len(positions), accelerator.num_processes)
            scale = accelerator.num_processes / step_targets
            loss_sum = torch.zeros((), device=accelerator.device)
            micro_batches = list(_chunks(mine, section.micro_batch_blocks))
            for number, rows in enumerate(micro_batches):
                tensors = _to_device(batch, rows, accelerator.device)
                is_last = number == len(micro_batches) - 1
                with _sync_only_at(accelerator, loss_module, is_last), accelerator.autocast():
                    loss = loss_module(*tensors)
                    accelerator.backward(loss * scale)
                loss_sum += loss.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), section.clip_norm)
            mean_loss = float(accelerator.reduce(loss_sum, "sum")) / step_targets
            _check_finite(mean_loss, float(norm), step, rate)
            optimizer.step()
            optimizer.zero_grad()

            num_targets += step_targets
            seconds = time.monotonic() - step_began
            metrics.write(
                step=step + 1,
                loss=mean_loss,
                learning_rate=rate,
                gradient_norm=float(norm),
                tokens=step_targets,
                tokens_per_second=round(step_targets / seconds, 1),
            )
            advance(1, f"loss {mean_loss:.3f}")
            done = step + 1
            if done < num_steps and done % section.save_every_steps == 0:
                save_state(work, done, model, optimizer)
        losses = metrics.column("loss")
    seconds = time.monotonic() - began
    return {
        "num_steps": num_steps,
        "num_targets": sum(stage.num_targets for stage in blocks.stages),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "tokens_per_second": round(num_targets / max(seconds, 1e-9), 1),
        "resumed_at_step": first_step,
    }


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and embeddings; leave vectors (norms, biases) alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class Step:
    """Blocks of one optimizer step: a stage, and positions in it."""

    stage: int
    positions: range


def plan_steps(blocks: Blocks, blocks_per_step: int) -> list[Step]:
    """Cut every stage into steps; a stage's last step may be smaller."""
    return [
        Step(number, range(start, min(start + blocks_per_step, stage.num_positions)))
        for number, stage in enumerate(blocks.stages)
        for start in range(0, stage.num_positions, blocks_per_step)
    ]


def _chunks(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _to_device(batch: Batch, rows: range, device: torch.device) -> tuple[torch.Tensor, ...]:
    arrays = (batch.input_ids, batch.labels, batch.segments)
    chosen = list(rows)
    return tuple(torch.from_numpy(a[chosen].astype(np.int64)).to(device) for a in arrays)


def _sync_only_at(accelerator: Accelerator, module: Any, is_last: bool) -> Any:
    """Exchange gradients between processes once a step, not once a micro-batch."""
    from contextlib import nullcontext

    return nullcontext() if is_last else accelerator.no_sync(module)


def _check_finite(loss: float, norm: float, step: int, rate: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ToolkitError(
            f"training: loss is {loss} and gradient norm {norm} at step {step + 1} "
            f"(learning rate {rate:.2e}); lower train.schedule.peak_lr, or look for damaged text."
        )
