"""THE training loop: continued pre-training on packed blocks, on one device or many."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from toolkit import __version__
from toolkit.checkpoint.training_state import StateWriter, latest_step, load_parameters, load_state
from toolkit.data.blocks import Batch, Blocks
from toolkit.data.split import stable_unit
from toolkit.errors import ToolkitError
from toolkit.progress import progress, say, silence
from toolkit.stage import changed_keys
from toolkit.train.activations import checkpoint_activations
from toolkit.train.balance import balance_figures
from toolkit.train.config import TrainSection
from toolkit.train.fuse import fuse, may_fuse, unfuse
from toolkit.train.heap import keep_freed_memory, place_moments
from toolkit.train.metrics import METRICS, MetricsLog, NoLog, resident_bytes
from toolkit.train.model import NextTokenLoss, choose_attention
from toolkit.train.packing_probe import settle_packing
from toolkit.train.precision import is_low, products_dtype, settle_precision
from toolkit.train.processes import add_up_in_float32, on_cpu
from toolkit.train.rotary import reach_of, reaches, set_reach
from toolkit.train.schedule import learning_rate, rate_in_stages
from toolkit.train.trackers import plain_settings
from toolkit.train.trainable import parameter_groups, plain_model
from toolkit.train.watch import Watch, WatchVerdict, is_better, judge, watch_steps

_WAIT = timedelta(hours=24)
"""Processes wait for the first one as long as its watch and its writing take."""


def train(
    model: Any,
    blocks: Blocks,
    section: TrainSection,
    *,
    seed: int,
    work: Path,
    watch: Watch | None = None,
    general_sources: tuple[str, ...] = (),
    rates: Mapping[int, float] | None = None,
    start: tuple[Path, int] | None = None,
    num_steps: int | None = None,
) -> dict[str, Any]:
    """Train what learns of `model` in place.

    Args:
        model: a causal language model with float32 parameters, as from `prepare_model`.
        blocks: what to train on.
        section: settings.
        seed: the same seed gives the same run, resumed or not.
        work: where metrics and resume states are kept.
        watch: bits per byte of a model by role, for the forgetting watch.
        general_sources: sources that the gate may raise the share of.
        rates: learning rate of every step, in place of the section's schedule.
        start: folder and step of a state to begin from, when `work` has none of its own.
        num_steps: after which training ends, where the blocks would last for more.

    Returns:
        Figures of the run: steps, tokens, first and last loss, seconds.

    Raises:
        ToolkitError: losses or gradients were not finite for several steps in a row, or there are
            more processes than blocks in a step.
    """
    section = settle_precision(section)
    accelerator = Accelerator(
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
    dtype = products_dtype(section)
    fused = may_fuse(section, accelerator.device.type, sharded=bool(accelerator.is_fsdp2))
    fused = fused and fuse(plain_model(model), dtype)
    # The parts of a fused block keep what selective checkpointing would, and no more.
    kind = section.gradient_checkpointing
    checkpoint_activations(plain_model(model), "none" if fused and kind == "selective" else kind)
    if section.compile:
        plain_model(model).base_model.compile()
    loss_module = NextTokenLoss(model.train(), dtype, fused=fused)
    choose_attention(
        plain_model(model), section.attn_implementation, accelerator.device.type, section.precision
    )
    settings = section.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay, settings.embedding_lr_scale),
        lr=section.schedule.peak_lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    if fused:
        place_moments(optimizer)
    add_up_in_float32(accelerator)
    loss_module, optimizer = accelerator.prepare(loss_module, optimizer)
    plain_loss = accelerator.unwrap_model(loss_module)
    trained = plain_loss.model
    steps = plan_steps(blocks, section.global_batch_size)[:num_steps]
    saved = latest_step(work)
    if (saved or 0) < len(steps):  # else it only finishes
        fused = settle_packing(loss_module, plain_loss, blocks.stages, accelerator)
    wanted = [section.stages.get(stage.name) for stage in blocks.stages]
    own = [stage.schedule if stage is not None else None for stage in wanted]
    lengths = [stage.sequence_length for stage in blocks.stages]
    reach = reaches([stage.name for stage in blocks.stages], lengths, section.stages)
    given = now = reach_of(plain_model(trained))
    num_steps, begin = len(steps), start[1] if start is not None else 0
    state: dict[str, Any] = {"bad_steps": 0, "skipped": 0, "raises": [], "stopped": ""}
    state |= {"watch_start": None, "watch_end": None, "best": None, "num_targets": 0}
    if saved is not None:
        state |= load_state(work, saved, trained, optimizer)
    elif start is not None:
        state |= {**load_state(*start, trained, optimizer), "stopped": "", "best": None}
    first_step = begin if saved is None else saved
    state["made_by"] = _same_makers(
        state.get("made_by"), accelerator.num_processes, fused, section.precision
    )
    for stage_number, position in state["raises"]:
        blocks.stages[stage_number].raise_share(position, general_sources, 2.0)
    looks = (
        watch_steps(num_steps - begin, section.forgetting_monitor.evaluations)
        if watch is not None
        else []
    )
    looks = {begin + step for step in looks}

    def look(step: int, log: MetricsLog | NoLog) -> WatchVerdict | None:
        """Score the validation sets after `step` steps."""
        if watch is None or step not in looks:
            return None
        if hasattr(loss_module, "reshard"):
            nothing = torch.zeros(1, 1, dtype=torch.int64, device=accelerator.device)
            figures = loss_module(nothing, nothing, nothing, look=watch)
            loss_module.reshard()  # else only a backward pass does
        else:
            figures = watch(trained)
        trained.train()
        state["watch_start"] = state["watch_start"] or figures
        state["watch_end"] = figures
        log.write(step=step, **{f"{role}_bits_per_byte": v for role, v in figures.items()})
        verdict = judge(figures, state["watch_start"], section.forgetting_monitor)
        if step and accelerator.is_main_process:
            say(f"  step {step}: {verdict.text}")
        return verdict

    main = accelerator.is_main_process
    writer = StateWriter(work, keep=section.save_total_limit, active=main)
    if section.trackers:
        accelerator.init_trackers("toolkit", config=plain_settings(section, seed))
    num_targets, done, began = 0, first_step, time.monotonic()
    with (
        keep_freed_memory(),
        MetricsLog(work / METRICS, keep_steps=first_step) if main else NoLog() as metrics,
        progress("training", num_steps, done=first_step) if main else silence() as advance,
    ):
        if saved is None:
            look(begin, metrics)
        for step in range(first_step, first_step if state["stopped"] else num_steps):
            step_began = time.monotonic()
            number, positions = steps[step].stage, steps[step].positions
            stage = blocks.stages[number]
            if section.stages and now != reach[number]:
                now = reach[number]
                set_reach(plain_model(trained), now, given)
            batch = stage.read(positions)
            step_targets = max(1, batch.num_targets)
            if rates:
                rate = rates[step]
            elif section.has_own_schedules:
                rate = rate_in_stages(step, steps.num_steps, own, section.schedule)
            else:
                rate = learning_rate(step, num_steps, section.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            # What is random in a step (dropout) depends on the step alone: nothing to save.
            torch.manual_seed(int(stable_unit(seed, step, accelerator.process_index) * 2**53))

            # Every target weighs the same, whichever micro-batch or process it is in: losses are
            # summed, and divided by the targets of the whole step. DDP averages, hence the factor.
            mine = range(accelerator.process_index, len(positions), accelerator.num_processes)
            scale = accelerator.num_processes / step_targets
            loss_sum = torch.zeros((), device=accelerator.device)
            most = -(-len(positions) // accelerator.num_processes)
            micro_batches = _chunks(mine, section.micro_batch_size, most)
            for count, rows in enumerate(micro_batches, start=1):
                tensors = _to_device(batch, rows, accelerator.device)
                is_last = count == len(micro_batches)
                with _sync_only_at(accelerator, loss_module, is_last), accelerator.autocast():
                    loss = loss_module(*tensors)
                    accelerator.backward(loss * scale)
                loss_sum += loss.detach()
            norm = float(accelerator.clip_grad_norm_(trained.parameters(), section.max_grad_norm))
            mean_loss = float(accelerator.reduce(loss_sum, "sum")) / step_targets

            finite = math.isfinite(mean_loss) and math.isfinite(norm)
            if finite:
                optimizer.step()
            state["bad_steps"] = 0 if finite else state["bad_steps"] + 1
            state["skipped"] += not finite
            optimizer.zero_grad()

            num_targets += step_targets
            state["num_targets"] += step_targets
            done = step + 1
            row = {
                "step": done,
                "loss": mean_loss if finite else str(mean_loss),
                "learning_rate": rate,
                "gradient_norm": norm if finite else str(norm),
                "tokens": step_targets,
                "tokens_per_second": round(step_targets / (time.monotonic() - step_began), 1),
                "memory_bytes": resident_bytes(),
            }
            if len(blocks.stages) > 1:
                row["stage"] = stage.name
            if plain_loss.expert_counts is not None:
                counts = accelerator.reduce(plain_loss.expert_counts, "sum")
                row |= balance_figures(counts)
                plain_loss.expert_counts = None
            metrics.write(**row if finite else {**row, "skipped": True, "loss": None})
            if section.trackers:
                numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
                accelerator.log(numbers, step=done)
            speed, memory = row["tokens_per_second"], resident_bytes() / 1e9
            advance(1, f"loss {mean_loss:.3f}  {speed:.0f} tokens/s  {memory:.1f} GB")
            if state["bad_steps"] >= section.max_nonfinite_steps:
                _stop(state["bad_steps"], mean_loss, norm, done, rate, writer, work)

            verdict = look(done, metrics)
            is_best = section.keeps_best and is_better(verdict, state["best"])
            if verdict is not None and is_best:
                state["best"] = {"step": done, **verdict.figures}
            if verdict is not None and verdict.beyond and done < num_steps:
                if section.forgetting_monitor.action == "stop":
                    state["stopped"] = f"step {done}: {verdict.text}"
                    break
                if section.forgetting_monitor.action == "raise_replay":
                    here = steps[step + 1]
                    change = [here.stage, here.positions[0]]
                    share = blocks.stages[change[0]].raise_share(change[1], general_sources, 2.0)
                    state["raises"].append(change)
                    metrics.write(step=done, replay_share=share)
            is_due = done < num_steps and done % section.save_steps == 0
            if (is_due or is_best) and not state["bad_steps"]:
                writer.save(done, trained, optimizer, state)
        writer.wait()
        if section.keep_checkpoints and latest_step(work) != done:
            writer.save(done, trained, optimizer, state)
            writer.wait()
        best = state["best"]["step"] if section.use == "best" and state["best"] else done
        if best != done:
            load_parameters(work, best, trained)
        if fused:
            unfuse(plain_model(model))
        seconds = time.monotonic() - began
        if section.trackers:
            accelerator.end_training()
        return {
            "num_steps": num_steps,
            "precision": section.precision,
            "num_targets": state["num_targets"],
            "first_loss": metrics.first_loss,
            "last_loss": metrics.last_loss,
            "tokens_per_second": round(num_targets / max(seconds, 1e-9), 1),
            "resumed_at_step": first_step,
            "skipped_steps": state["skipped"],
            "replay_raised": len(state["raises"]),
            "stopped_by_watch": state["stopped"],
            "watch": {"start": state["watch_start"], "end": state["watch_end"]},
            "best": state["best"],
            "used_step": best,
        }


@dataclass(frozen=True)
class TrainStep:
    """Blocks of one optimizer step: a stage, and positions in it."""

    stage: int
    positions: range


@dataclass(frozen=True)
class TrainPlan:
    """Steps in their order, each worked out when it is asked for, at once however far it lies.

    Attributes:
        positions: of each stage.
        global_batch_size: a stage's last step may be smaller.
        steps: numbers of the steps in it.
    """

    positions: tuple[int, ...]
    global_batch_size: int
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def num_steps(self) -> list[int]:
        """Steps of each stage."""
        return [-(-count // self.global_batch_size) for count in self.positions]

    @overload
    def __getitem__(self, step: int) -> TrainStep: ...

    @overload
    def __getitem__(self, step: slice) -> TrainPlan: ...

    def __getitem__(self, step: int | slice) -> TrainStep | TrainPlan:
        if isinstance(step, slice):
            return replace(self, steps=self.steps[step])
        number = self.steps[step]
        for stage, count in enumerate(self.positions):
            start = number * self.global_batch_size
            if start < count:
                return TrainStep(stage, range(start, min(start + self.global_batch_size, count)))
            number -= -(-count // self.global_batch_size)
        raise IndexError(step)


def plan_steps(blocks: Blocks, global_batch_size: int) -> TrainPlan:
    """Cut every stage into steps."""
    positions = tuple(stage.num_positions for stage in blocks.stages)
    total = sum(-(-count // global_batch_size) for count in positions)
    return TrainPlan(positions, global_batch_size, range(total))


def _chunks(rows: range, size: int, most: int) -> list[range]:
    """Micro-batches of one process, as many as the process with the most blocks has: every process
    must take part in every exchange, if need be with an empty one.

    >>> _chunks(range(1, 5, 2), 1, 3)
    [range(1, 3, 2), range(3, 5, 2), range(5, 5, 2)]
    """
    return [rows[start : start + size] for start in range(0, max(1, most), size)]


def _to_device(batch: Batch, rows: range, device: torch.device) -> tuple[torch.Tensor, ...]:
    arrays = (batch.input_ids, batch.labels, batch.segments)
    if len(rows) == 0:  # takes part without a target
        empty = [np.zeros_like(array[:1]) for array in arrays]
        empty[1] -= 100
        return tuple(torch.from_numpy(array.astype(np.int64)).to(device) for array in empty)
    chosen = list(rows)
    return tuple(torch.from_numpy(a[chosen].astype(np.int64)).to(device) for a in arrays)


def _sync_only_at(accelerator: Accelerator, module: Any, is_last: bool) -> Any:
    """Exchange gradients between processes once a step, not once a micro-batch."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(module)


def _same_makers(
    before: dict[str, str] | None, num_processes: int, fused: bool, precision: str
) -> dict[str, str]:
    """What a state depends on besides settings and data; says what differs from a loaded one's."""
    now = {name: metadata.version(name) for name in ("torch", "transformers")}
    now |= {"toolkit": __version__, "processes": str(num_processes)}
    now |= {"blocks": "fused" if fused else "plain", "precision": precision}
    for line in changed_keys(
        {"blocks": "plain", "precision": "bf16", **before} if before else now, now
    ):
        say(f"  the state it continues from was written with another {line}: not bit for bit")
    return now


def _stop(
    bad: int, loss: float, norm: float, step: int, rate: float, writer: StateWriter, work: Path
) -> None:
    writer.wait()
    saved = latest_step(work)
    where = f"the state of step {saved} is kept" if saved else "no state was written yet"
    raise ToolkitError(
        f"training: loss is {loss} and gradient norm {norm} at step {step}, the {bad}. in a row "
        f"that is not finite (learning rate {rate:.2e}); none of them changed the model. "
        f"{where[0].upper()}{where[1:]}. Lower train.schedule.peak_lr and continue with "
        "--change-schedule, or look for damaged text or weights."
    )
