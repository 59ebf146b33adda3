"""The cpt stage: general model and packed data in, `runs/<recipe>/cpt/` with the specialist out."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.folder import save_model, stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.probe_documents import most_positions
from toolkit.checkpoint.sharded_load import EmptyModel, empty_causal_model, sharded_fault
from toolkit.checkpoint.sharded_save import ModelWriter
from toolkit.checkpoint.side_files import copy_side_files
from toolkit.checkpoint.training_state import (
    keep_states,
    return_states,
    saved_steps,
    state_names,
    whole_parameters,
)
from toolkit.checkpoint.wrapped_adapter import place_in_wrapper
from toolkit.data.blocks import Blocks, find_seen_tokens
from toolkit.errors import ConfigError, DataError
from toolkit.progress import say
from toolkit.stage import Stage
from toolkit.train.config import TrainSection
from toolkit.train.loop import train
from toolkit.train.metrics import METRICS, curve_line, read_curve
from toolkit.train.monitor import ScoreRoles
from toolkit.train.precision import settle_precision
from toolkit.train.processes import is_first, num_processes, wait_for_all
from toolkit.train.rotary import RotarySettings, read_rotary, rotary_by_stage, set_rotary
from toolkit.train.self_distillation import (
    CONVERSATIONS,
    SelfDistillation,
    load_conversations,
)
from toolkit.train.setup import start_accelerator
from toolkit.train.state import Continuation, TrainSummary
from toolkit.train.steps import plan_steps
from toolkit.train.trackers import check_trackers
from toolkit.train.trainable import (
    fill_new_blocks,
    finished_model,
    plain_model,
    prepare_model,
)

STATES = "states"


def run_train(
    section: TrainSection,
    stage: Stage,
    general: Path,
    data: Path,
    *,
    score_roles: ScoreRoles | None = None,
    general_sources: tuple[str, ...] = (),
    continuation: Continuation | None = None,
    conversations: Path | None = None,
) -> None:
    """Train the general model on the data stage's blocks and write the specialist.

    The specialist is stored in the general model's own type, with one cast from float32.

    Args:
        section: settings.
        stage: stage to write to.
        general: folder of the model to start from.
        data: folder of the data stage.
        score_roles: bits per byte of a model by role, for the forgetting monitor.
        general_sources: sources whose share the monitor may raise.
        continuation: state to begin from and blocks to train on, in place of a run's beginning and
            of all that `data` holds.
        conversations: folder of those that training stays near to, where the section asks for it.

    Raises:
        ConfigError: blocks are longer than the model's positions, or a tracker is not installed.
        DataError: the blocks hold tokens that the model has no embedding for.
    """
    check_trackers(section.trackers)
    distillation = _open_conversations(section, conversations, stage.seed)
    blocks = continuation.blocks if continuation else Blocks.open(data, section.epochs, stage.seed)
    # Only the first process may hold the stage's lock; the others write nothing.
    with stage.running() if is_first() else contextlib.nullcontext(stage.work) as work:
        if is_first():
            return_states(work / STATES, work)
        wait_for_all()
        accelerator = None
        if num_processes() > 1:  # they must know of each other before the model takes memory
            section = settle_precision(section)
            accelerator = start_accelerator(section, work)
        empty = _without_memory(general, section, accelerator)
        model = load_causal_model(general, torch.float32) if empty is None else empty.model
        _refuse_misfits(model, blocks, data, section)
        original_rotary = read_rotary(model)
        model = prepare_model(model, section, stage.seed)
        summary = train(
            model,
            blocks,
            section,
            seed=stage.seed,
            work=work,
            score_roles=score_roles,
            general_sources=general_sources,
            continuation=continuation,
            distillation=distillation,
            accelerator=accelerator,
            fill=None if empty is None else partial(_fill, empty, model),
        )
        restored = data if section.start is not None else None
        rotary = None
        if section.stages and summary.used_step:
            rotary = _rotary_after(blocks, section, summary.used_step)
        if empty is None or not _write_in_parts(
            general, section, model, work, rotary=rotary, unseen_in=restored
        ):
            _write_gathered(
                general, section, model, work, rotary=(rotary, original_rotary), unseen_in=restored
            )
        if is_first():
            _keep_states(work, section, summary)
            stage.finish(summary.to_json(), drop=state_names(work))
    wait_for_all()
    if is_first():
        _say_summary(summary, section, stage.folder)


def _write_gathered(
    general: Path,
    section: TrainSection,
    model: Any,
    work: Path,
    *,
    rotary: tuple[RotarySettings | None, RotarySettings],
    unseen_in: Path | None,
) -> None:
    """Write the specialist from whole parameters; every process takes part in gathering them.

    Args:
        general: folder of the model that training started from.
        section: settings.
        model: trained model, its parameters whole or shared out among processes.
        work: folder to write to.
        rotary: positions' settings at the state that is written and those that the model came with;
            the first is None where they did not change.
        unseen_in: data folder whose unseen tokens get the general model's rows again, if any.
    """
    gathered = whole_parameters(model)
    if not is_first():
        return
    if gathered is not None:
        model = _with_parameters(general, section, gathered)
    if section.lora is not None:
        _write_adapter(model, work / "adapter")
    finished = finished_model(model)
    used_rotary, original_rotary = rotary
    if used_rotary is not None:
        set_rotary(finished, used_rotary, original_rotary)
    if unseen_in is not None:
        _restore_unseen_rows(finished, general, unseen_in)
    save_model(finished, work, dtype=stored_dtype(general), like=general)


def _without_memory(general: Path, section: TrainSection, accelerator: Any) -> EmptyModel | None:
    """The model without memory, where processes share out its parameters (FSDP2) and each can read
    its parts alone; None where each process reads all."""
    if accelerator is None or not accelerator.is_fsdp2:
        return None
    fault = sharded_fault(general)
    if not fault and section.lora is not None and section.lora.dora:
        fault = "adapters with magnitudes (dora) begin from its weights"
    if fault:
        if is_first():
            say(f"  {general}: {fault}, so each process reads the whole model")
        return None
    return empty_causal_model(general)


def _fill(empty: EmptyModel, model: Any) -> None:
    """Read the parameters of a prepared model, and copy those of its new blocks."""
    empty.fill()
    fill_new_blocks(plain_model(model))


def _write_in_parts(
    general: Path,
    section: TrainSection,
    model: Any,
    work: Path,
    *,
    rotary: RotarySettings | None,
    unseen_in: Path | None,
) -> bool:
    """Write the specialist from the parts that processes hold; whether it can be written so.

    Args:
        general: folder of the model that training started from.
        section: settings.
        model: the model in training.
        work: folder to write to.
        rotary: positions that the specialist has, where they were changed.
        unseen_in: folder of the data stage whose unseen tokens get their rows back, or None.
    """
    # The form that the files are to have, without memory: names and shapes of the trained model
    # have changed where it is wrapped and its parameters are in parts.
    empty = empty_causal_model(general)
    prepared = prepare_model(empty.model, section)
    trained = plain_model(model)
    # What reading weights leaves on a model, and this one's were never read.
    empty.model.generation_config = trained.generation_config
    empty.model._weight_conversions = trained._weight_conversions
    if rotary is not None:
        set_rotary(empty.model, rotary, read_rotary(empty.model))
    writer = ModelWriter(empty, prepared, model, stored_dtype(general))
    if fault := writer.fault():
        if is_first():
            say(f"  {general}: {fault}, so the first process writes the whole model")
        return False
    vocabulary_names = writer.vocabulary_names() if unseen_in is not None else set()
    original = open_checkpoint(general)

    def restore(name: str, tensor: Tensor) -> Tensor:
        if unseen_in is None or name not in vocabulary_names:
            return tensor
        is_seen = torch.from_numpy(find_seen_tokens(unseen_in, len(tensor)))
        return torch.where(is_seen[:, None], tensor, original.tensor(name).float())

    if is_first():
        # Only the first process removes, and no other writes before it has: their parts have names
        # of the same pattern.
        for leftover_path in work.glob("model*.safetensors*"):  # of a run that was killed here
            leftover_path.unlink()
    wait_for_all()
    writer.write(work, restore)
    adapters = writer.gather("lora_") if section.lora is not None else {}
    if is_first():
        if section.lora is not None:
            _write_adapter(prepared, work / "adapter", adapters)
        writer.write_settings(work)
        copy_side_files(general, work)
    return True


@torch.no_grad()
def _restore_unseen_rows(model: Any, start: Path, data: Path) -> None:
    """Put rows of the vocabulary back to the start's where training never saw the token.

    Decay and the softmax move them all the same. Added to an instruct model that move would fall on
    tokens, such as the ends of chat turns, that it alone has learned.
    """
    original = load_causal_model(start, torch.float32)
    pairs = [
        (model.get_input_embeddings(), original.get_input_embeddings()),
        (model.get_output_embeddings(), original.get_output_embeddings()),
    ]
    for trained, first in pairs:
        is_seen = torch.from_numpy(find_seen_tokens(data, len(first.weight)))
        trained.weight[~is_seen] = first.weight[~is_seen].to(trained.weight)


def _open_conversations(
    section: TrainSection, folder: Path | None, seed: int
) -> SelfDistillation | None:
    """
    Raises:
        ConfigError: the section asks for conversations, and this kind of run has none.
    """
    if section.self_distillation is None:
        return None
    if folder is None:
        raise ConfigError("train.self_distillation: is for continued pre-training; drop it here.")
    conversations = load_conversations(folder / CONVERSATIONS)
    return SelfDistillation(section.self_distillation, conversations, seed)


def _with_parameters(general: Path, section: TrainSection, gathered: dict[str, Tensor]) -> Any:
    """A model of this process alone with the parameters that processes held parts of."""
    model = prepare_model(load_causal_model(general, torch.float32), section)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Taken out one by one: two whole models in float32 need not fit until the end.
            parameter.copy_(gathered.pop(name))
    return model


def _write_adapter(model: Any, folder: Path, adapters: dict[str, Tensor] | None = None) -> None:
    """Without its base the adapter is small; it can be merged with others later."""
    model.save_pretrained(folder, state_dict=adapters)
    place_in_wrapper(model, folder)
    # peft writes a model card to be filled in, which names the base by its path on this machine.
    (folder / "README.md").unlink(missing_ok=True)


def _rotary_after(blocks: Blocks, section: TrainSection, used_step: int) -> RotarySettings:
    """Positions of the stage that a step belongs to."""
    last_step = plan_steps(blocks, section.global_batch_size)[used_step - 1]
    return rotary_by_stage(blocks.stages, section.stages)[last_step.stage]


def _keep_states(work: Path, section: TrainSection, summary: TrainSummary) -> None:
    """Move the states that the recipe keeps to where they stay."""
    kept_steps = saved_steps(work) if section.keep_checkpoints else []
    # With `keep_checkpoints` the best state is among those kept already.
    if section.keeps_best and summary.best is not None and not kept_steps:
        kept_steps = [summary.best.step]
    if kept_steps:
        keep_states(work, work / STATES, kept_steps)


def _say_summary(summary: TrainSummary, section: TrainSection, folder: Path) -> None:
    points = read_curve(folder / METRICS)
    last_step = points[-1].step if points else summary.num_steps
    planned = f" of {summary.num_steps}" if last_step < summary.num_steps else ""
    first_loss, last_loss = (
        "not finite" if loss is None else f"{loss:.3f}"
        for loss in (summary.first_loss, summary.last_loss)
    )
    say(
        f"  {last_step}{planned} steps, loss {first_loss} -> {last_loss}, "
        f"{summary.tokens_per_second:.0f} tokens/s"
    )
    if summary.skipped_steps:
        say(f"  {summary.skipped_steps} steps were not finite and left out")
    if summary.replay_raised:
        say(f"  the forgetting monitor raised the share of replay {summary.replay_raised} times")
    if section.use == "best" and summary.best is None:
        say(
            "  train.use is best, but the forgetting monitor saw no state within its tolerance: "
            f"the specialist is the last state, of step {summary.used_step}"
        )
    if summary.used_step != last_step:
        say(f"  the specialist is the best state, of step {summary.used_step}")
    if summary.stopped_by_watch:
        say(f"  stopped by the forgetting monitor at {summary.stopped_by_watch}")
    losses = [point.loss for point in points if point.loss is not None]
    say(f"  loss {curve_line(losses)}")


def _refuse_misfits(model: Any, blocks: Blocks, data: Path, section: TrainSection) -> None:
    """
    Raises:
        ConfigError: blocks are longer than the positions that a stage of training has.
        DataError: the blocks hold a token that the model has no embedding for.
    """
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    # Here, as an index out of range in an embedding is an error of a GPU's that names no token.
    if blocks.largest_token >= num_embeddings:
        raise DataError(
            f"{data}: holds token {blocks.largest_token}, but the model's vocabulary has "
            f"{num_embeddings}; its tokenizer and weights do not belong together."
        )
    own_limit = most_positions(model.config)
    rotary_settings = rotary_by_stage(blocks.stages, section.stages)
    for stage, rotary in zip(blocks.stages, rotary_settings, strict=True):
        limit = rotary.max_position_embeddings or own_limit
        if limit is not None and stage.sequence_length > limit:
            raise ConfigError(
                f"data.sequence_length: must be at most {limit}, the positions that the "
                f"model has (got {stage.sequence_length})."
            )
