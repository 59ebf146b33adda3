"""THE training loop: continued pre-training on packed blocks, on one device or many."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.checkpoint.sharded_state import load_parameters
from toolkit.checkpoint.training_state import latest_step
from toolkit.data.blocks import Batch, Blocks
from toolkit.data.split import stable_unit
from toolkit.errors import ToolkitError
from toolkit.train.config import TrainSection
from toolkit.train.fuse import unfuse
from toolkit.train.heap import keep_freed_memory
from toolkit.train.layout import IGNORED
from toolkit.train.monitor import ForgettingMonitor, ScoreRoles
from toolkit.train.packing_probe import settle_packing
from toolkit.train.precision import settle_precision
from toolkit.train.processes import exchanging, from_first
from toolkit.train.rotary import RotaryByStage
from toolkit.train.schedule import RunSchedule
from toolkit.train.self_distillation import SelfDistillation
from toolkit.train.setup import TrainingSetup, set_up_training
from toolkit.train.state import (
    Checkpoints,
    Continuation,
    StepOutcome,
    TrainState,
    TrainSummary,
    load_train_state,
)
from toolkit.train.steps import plan_steps
from toolkit.train.trackers import record_steps
from toolkit.train.trainable import plain_model


def train(
    model: Any,
    blocks: Blocks,
    section: TrainSection,
    *,
    seed: int,
    work: Path,
    score_roles: ScoreRoles | None = None,
    general_sources: tuple[str, ...] = (),
    continuation: Continuation | None = None,
    distillation: SelfDistillation | None = None,
    accelerator: Accelerator | None = None,
    fill: Callable[[], None] | None = None,
) -> TrainSummary:
    """Train what learns of `model` in place.

    Args:
        model: a causal language model with float32 parameters, as from `prepare_model`.
        blocks: what to train on.
        section: settings.
        seed: the same seed gives the same run, resumed or not.
        work: folder of metrics and of the states to resume from.
        score_roles: bits per byte of the model by role, for the forgetting monitor.
        general_sources: sources whose share the monitor may raise.
        continuation: another run's state to begin from, when `work` has none of its own.
        distillation: conversations of the general model's own that every step stays near to.
        accelerator: device and processes, where they were asked for before the model was made.
        fill: reads the parameters of a model without memory once they are shared out.

    Raises:
        ToolkitError: losses or gradients were not finite for several steps in a row, or there are
            more processes than blocks in a step.
    """
    section = settle_precision(section)
    setup = set_up_training(model, section, work, accelerator=accelerator, fill=fill)
    steps = plan_steps(blocks, section.global_batch_size)
    if continuation is not None:
        steps = steps[: continuation.num_steps]
    saved_step = from_first(latest_step(work))
    if (saved_step or 0) < len(steps):  # else it only finishes
        _probe_packing(setup, blocks)
    rotary = RotaryByStage(plain_model(setup.model), blocks.stages, section.stages)
    state = load_train_state(work, saved_step, setup, continuation)
    state.repeat_raises(blocks, general_sources)
    given_rates = continuation.rates if continuation is not None else None
    schedule = RunSchedule(section, steps, blocks.stages, given_rates)
    checkpoints = Checkpoints(work, setup, len(steps))
    with (
        # Where parameters are shared out, freed memory is given back: see `heap`.
        keep_freed_memory() if fill is None else contextlib.nullcontext(),
        record_steps(setup, state, blocks.stages, len(steps), seed=seed, work=work) as recorder,
    ):
        monitor = ForgettingMonitor(
            score_roles, setup, blocks, steps, general_sources, continuation, recorder.metrics
        )
        # Before the first step, so that all later figures have something to be compared with.
        if saved_step is None:
            monitor.look(state)
        while state.step < len(steps) and not state.stopped:
            step_began = time.monotonic()
            step = steps[state.step]
            rotary.enter_stage(step.stage)
            batch = blocks.stages[step.stage].read(step.positions)
            rate = schedule.rate_of(state.step)
            outcome = optimizer_step(
                setup, batch, rate, seed=seed, step=state.step, distillation=distillation
            )
            state.count_step(outcome)
            # The order matters: a step is on record before it can end the run, and what the
            # monitor decides belongs to the state that is saved after this very step.
            recorder.record(state, step.stage, outcome, time.monotonic() - step_began)
            if state.bad_steps >= section.max_nonfinite_steps:
                raise _not_finite(state, outcome, checkpoints.wait())
            monitor.after_step(state)
            checkpoints.after_step(state)
        checkpoints.finish(state)
        used_step = _load_best(setup, state, work)
        if setup.plain_loss.fused:
            unfuse(plain_model(model))
        return recorder.summarize(state, used_step)


def _probe_packing(setup: TrainingSetup, blocks: Blocks) -> None:
    # The probe packs two documents into a block, so none is longer than half of the shortest.
    longest = min(stage.sequence_length for stage in blocks.stages) // 2
    settle_packing(setup.loss_module, setup.plain_loss, longest, setup.accelerator)


def optimizer_step(
    setup: TrainingSetup,
    batch: Batch | None,
    learning_rate: float,
    *,
    seed: int,
    step: int,
    distillation: SelfDistillation | None = None,
) -> StepOutcome:
    """One update of the parameters; it is refused where loss or gradient is not finite.

    Args:
        setup: model, loss and optimizer.
        batch: blocks of the step, those of all processes; None where conversations are all there
            is, whose divergence is then the loss.
        learning_rate: rate of the step, before the scale of each group of parameters.
        seed: seed of the run.
        step: number of the step, from 0.
        distillation: conversations that the model stays near to.
    """
    accelerator, optimizer = setup.accelerator, setup.optimizer
    num_targets = 1 if batch is None else max(1, batch.num_targets)
    # Set anew in every step, not by a scheduler of torch: a rate that follows from the step's
    # number alone is nothing that a resumed run could have lost.
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
    # What is random in a step (dropout) depends on the step alone: nothing to save.
    torch.manual_seed(int(stable_unit(seed, step, accelerator.process_index) * 2**53))
    divergence_share = None
    if distillation is not None:  # before the blocks, whose last pass exchanges all gradients
        divergence_share = _accumulate_divergence(setup, distillation, step)
    loss_sum = (
        divergence_share if batch is None else _accumulate_gradients(setup, batch, num_targets)
    )
    assert loss_sum is not None  # noqa: S101  (a step has blocks, conversations, or both)
    max_grad_norm = setup.section.max_grad_norm
    # The two numbers that are taken from the device in a step; all else stays queued behind it.
    norm = float(accelerator.clip_grad_norm_(setup.model.parameters(), max_grad_norm))
    mean_loss = float(accelerator.reduce(loss_sum, "sum")) / num_targets
    divergence = None
    if divergence_share is not None:
        divergence = float(accelerator.reduce(divergence_share, "sum"))
    outcome = StepOutcome(mean_loss, norm, learning_rate, num_targets, divergence=divergence)
    # All processes judge the same reduced figures, so that either all make the update or none.
    if outcome.is_finite:
        optimizer.step()
    # Of a refused step too: its gradients would be added to the next one's.
    optimizer.zero_grad()
    return replace(outcome, expert_counts=_take_expert_counts(setup))


def _accumulate_gradients(setup: TrainingSetup, batch: Batch, num_targets: int) -> Tensor:
    """Forward and backward passes of this process; returns the sum of its losses.

    Every target weighs the same, whichever micro-batch or process it is in: losses are summed, and
    divided by the targets of the whole step. DDP averages over processes, hence their number as a
    factor.
    """
    accelerator, loss_module = setup.accelerator, setup.loss_module
    scale = accelerator.num_processes / num_targets
    num_blocks = len(batch.input_ids)
    own_rows = range(accelerator.process_index, num_blocks, accelerator.num_processes)
    most_rows = -(-num_blocks // accelerator.num_processes)
    # Every process goes round as often as the one with the most blocks: gradients are exchanged by
    # all or none.
    micro_batches = _cut_micro_batches(own_rows, setup.section.micro_batch_size, most_rows)
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, rows in enumerate(micro_batches, start=1):
        tensors = _to_device(batch, rows, accelerator.device)
        # Processes exchange gradients once a step, not once a micro-batch.
        waits = number < len(micro_batches)
        with exchanging(accelerator, loss_module, waits=waits), accelerator.autocast():
            loss = loss_module(*tensors)
            accelerator.backward(loss * scale)
        loss_sum += loss.detach()
    return loss_sum


def _accumulate_divergence(
    setup: TrainingSetup, distillation: SelfDistillation, step: int
) -> Tensor:
    """Forward and backward pass of this process over the step's conversations; returns its part of
    their mean divergence, in nats per token."""
    accelerator, loss_module = setup.accelerator, setup.loss_module
    num_processes = accelerator.num_processes
    row = distillation.row(step, accelerator.process_index, num_processes)
    tensors = tuple(
        torch.from_numpy(array).to(accelerator.device)
        for array in (row.input_ids, row.labels, row.segments)
    )
    teacher = row.teacher.to(accelerator.device)
    with exchanging(accelerator, loss_module, waits=True), accelerator.autocast():
        total = loss_module(*tensors, teacher=teacher, reverse=distillation.reverse)
        share = total / max(1, row.num_targets)
        # DDP averages over processes, hence their number as a factor.
        accelerator.backward(share * (distillation.section.weight * num_processes))
    mean_share: Tensor = share.detach()
    return mean_share


def _cut_micro_batches(rows: range, size: int, most_rows: int) -> list[range]:
    """Micro-batches of one process, as many as the process with the most blocks has: every process
    must take part in every exchange, if need be with an empty one.

    >>> _cut_micro_batches(range(1, 5, 2), 1, 3)
    [range(1, 3, 2), range(3, 5, 2), range(5, 5, 2)]
    """
    return [rows[start : start + size] for start in range(0, max(1, most_rows), size)]


def _to_device(batch: Batch, rows: range, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs, labels and segments of some blocks; of none, one block without a target."""
    arrays = [batch.input_ids, batch.labels, batch.segments]
    if len(rows) > 0:
        chosen = [array[list(rows)] for array in arrays]
    else:
        chosen = [np.full_like(arrays[0][:1], filler) for filler in (0, IGNORED, 0)]
    return tuple(torch.from_numpy(array.astype(np.int64)).to(device) for array in chosen)


def _take_expert_counts(setup: TrainingSetup) -> Tensor | None:
    """How often each expert was chosen since the last call, over all processes."""
    counts = setup.plain_loss.expert_counts
    if counts is None:
        return None
    setup.plain_loss.expert_counts = None
    total: Tensor = setup.accelerator.reduce(counts, "sum")
    return total


def _load_best(setup: TrainingSetup, state: TrainState, work: Path) -> int:
    """Leave the model in the state that the recipe uses; returns its step."""
    if setup.section.use != "best" or state.best is None or state.best.step == state.step:
        return state.step
    load_parameters(work, state.best.step, setup.model)
    return state.best.step


def _not_finite(state: TrainState, outcome: StepOutcome, saved_step: int | None) -> ToolkitError:
    saved = f"The state of step {saved_step} is kept" if saved_step else "No state was written yet"
    return ToolkitError(
        f"training: loss is {outcome.loss} and gradient norm {outcome.gradient_norm} at step "
        f"{state.step}, the {state.bad_steps}. in a row that is not finite (learning rate "
        f"{outcome.learning_rate:.2e}); none of them changed the model. {saved}. Lower "
        "train.schedule.peak_lr and continue with --change-schedule, or look for damaged text or "
        "weights."
    )
