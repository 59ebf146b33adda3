"""The cpt stage: general model and packed data in, `runs/<recipe>/cpt/` with the specialist out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.folder import save_model, stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.training_state import (
    keep_states,
    return_states,
    saved_steps,
    state_names,
    whole_parameters,
)
from toolkit.checkpoint.wrapped_adapter import place_in_wrapper
from toolkit.data.blocks import Blocks
from toolkit.errors import ConfigError, DataError
from toolkit.progress import say
from toolkit.stage import Stage
from toolkit.train.config import TrainSection
from toolkit.train.loop import plan_steps, train
from toolkit.train.metrics import METRICS, curve_line, read_curve
from toolkit.train.processes import is_first, wait_for_all
from toolkit.train.rotary import Reach, reach_of, reaches, set_reach
from toolkit.train.trackers import check_trackers
from toolkit.train.trainable import finished_model, prepare_model
from toolkit.train.watch import Watch

STATES = "states"


def run_train(
    section: TrainSection,
    stage: Stage,
    general: Path,
    data: Path,
    *,
    watch: Watch | None = None,
    general_sources: tuple[str, ...] = (),
    rates: Mapping[int, float] | None = None,
    start: tuple[Path, int] | None = None,
    blocks: Blocks | None = None,
    num_steps: int | None = None,
) -> None:
    """Train the general model on the data stage's blocks and write the specialist.

    The specialist is stored in the general model's own type, with one cast from float32.

    Args:
        section: settings.
        stage: where to write.
        general: folder of the model to start from.
        data: folder of the data stage.
        watch, general_sources, rates, start, num_steps: see `train`.
        blocks: in place of all that `data` holds.

    Raises:
        ConfigError: blocks are longer than the model's positions, or a tracker is not installed.
        DataError: the blocks hold tokens that the model has no embedding for.
    """
    check_trackers(section.trackers)
    blocks = blocks or Blocks.open(data, section.epochs, stage.seed)
    with stage.running() if is_first() else contextlib.nullcontext(stage.work) as work:
        if is_first():
            return_states(work / STATES, work)
        wait_for_all()
        model = load_causal_model(general, torch.float32)
        reach = _reach(blocks, section)
        _check(model, blocks, data, [item.max_position_embeddings for item in reach])
        given = reach_of(model)
        model = prepare_model(model, section)
        results = train(
            model,
            blocks,
            section,
            seed=stage.seed,
            work=work,
            watch=watch,
            general_sources=general_sources,
            rates=rates,
            start=start,
            num_steps=num_steps,
        )
        whole = whole_parameters(model)
        if is_first():
            if whole is not None:
                model = prepare_model(load_causal_model(general, torch.float32), section)
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        parameter.copy_(whole.pop(name))
            if section.lora is not None:
                # Without its base the adapter is small; it can be merged with others later.
                model.save_pretrained(work / "adapter")
                place_in_wrapper(model, work / "adapter")
                (work / "adapter" / "README.md").unlink(missing_ok=True)
            finished = finished_model(model)
            if section.stages and results["used_step"]:
                last = plan_steps(blocks, section.global_batch_size)[results["used_step"] - 1]
                set_reach(finished, reach[last.stage], given)
            save_model(finished, work, dtype=stored_dtype(general), like=general)
            stay = saved_steps(work) if section.keep_checkpoints else []
            if section.keeps_best and results["best"] and not stay:
                stay = [results["best"]["step"]]
            if stay:
                keep_states(work, work / STATES, stay)
            stage.finish(results, drop=state_names(work))
    wait_for_all()
    if is_first():
        say(_words(results))
        losses = [p.loss for p in read_curve(stage.folder / METRICS) if p.loss is not None]
        say(f"  loss {curve_line(losses)}")


def _words(results: dict[str, Any]) -> str:
    lines = [
        f"  {results['num_steps']} steps, loss {results['first_loss']:.3f} -> "
        f"{results['last_loss']:.3f}, {results['tokens_per_second']:.0f} tokens/s"
    ]
    if results["skipped_steps"]:
        lines.append(f"  {results['skipped_steps']} steps were not finite and left out")
    if results["replay_raised"]:
        lines.append(f"  the watch raised the share of replay {results['replay_raised']} times")
    if results["used_step"] != results["num_steps"] and not results["stopped_by_watch"]:
        lines.append(f"  the specialist is the best state, of step {results['used_step']}")
    if results["stopped_by_watch"]:
        lines.append(f"  stopped by the watch at {results['stopped_by_watch']}")
    return "\n".join(lines)


def _reach(blocks: Blocks, section: TrainSection) -> list[Reach]:
    names = [stage.name for stage in blocks.stages]
    lengths = [stage.sequence_length for stage in blocks.stages]
    return reaches(names, lengths, section.stages)


def _check(model: Any, blocks: Blocks, data: Path, positions: list[int | None]) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if blocks.largest_token >= vocabulary:
        raise DataError(
            f"{data}: holds token {blocks.largest_token}, but the model's vocabulary has "
            f"{vocabulary}; its tokenizer and weights do not belong together."
        )
    own = getattr(model.config, "max_position_embeddings", None)
    for stage, raised in zip(blocks.stages, positions, strict=True):
        limit = raised or own
        if limit is not None and stage.sequence_length > limit:
            raise ConfigError(
                f"data.sequence_length: must be at most {limit}, the positions that the model has "
                f"(got {stage.sequence_length})."
            )
