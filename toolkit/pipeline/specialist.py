"""The stages that make a specialist, each of folders that stand: documents, continued pre-training,
and what is made of its states.

A specialist is the end of training, or is annealed or averaged from states that training kept.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.config import DataSection, identity_of_data
from toolkit.errors import CheckpointError, ConfigError
from toolkit.evaluate.config import EvaluateSection
from toolkit.file_hashes import known_hash
from toolkit.library_errors import computing
from toolkit.pipeline.model_hashes import conversation_hashes, fingerprint, tokenizer_hashes
from toolkit.pipeline.run import Run, ensure_stage
from toolkit.progress import say
from toolkit.section import replace_values
from toolkit.stage import Stage, content_hash, hash_folder, hash_json
from toolkit.train.config import TrainSection, identity_of, watch_decides, without_effect
from toolkit.train.schedule import anneal_rates, constant_steps, decay_weights, learning_rate

if TYPE_CHECKING:
    from toolkit.train.state import Continuation


def data_stage(
    run: Run, name: str, section: DataSection, general: Path, *, for_training: bool = True
) -> Path:
    """A data stage of any name: a section's documents as tokens of a model's tokenizer, or as
    evaluation sets alone."""
    from toolkit.data.files import input_hashes
    from toolkit.data.run import run_data

    others = [Path(name).expanduser() for name in section.cleaning.decontaminate_files]
    inputs = {
        "tokenizer": hash_json(tokenizer_hashes(general)),
        **input_hashes(section.sources),
        **{f"decontaminate/{p}": known_hash(p) for p in others if p.is_file()},
    }
    # Only conversations go through a chat template: a changed one must not make plain documents
    # anew.
    if any(source.messages_field for source in section.sources.values()):
        inputs |= conversation_hashes(general)
    # Nothing is added for training, so that data stages made before there was a purpose fit.
    purpose = {} if for_training else {"for": "evaluation"}
    stage = run.stage(name, {"data": identity_of_data(section), **purpose}, inputs)
    return ensure_stage(
        stage, name, lambda: run_data(section, stage, general, say, for_training=for_training)
    )


def train_cpt(run: Run, general: Path, data: Path, *, change_schedule: bool = False) -> Path:
    """The cpt stage: continued pre-training, general model to specialist.

    Args:
        run: run of the recipe.
        general: folder of the general model.
        data: folder of the data stage.
        change_schedule: whether an interrupted run continues although its schedule was changed.

    Raises:
        ConfigError: more than the schedule was changed.
    """
    from toolkit.merge.in_memory_proof import note_unless_live
    from toolkit.pipeline.training import train_specialist
    from toolkit.train.processes import is_first

    stage = cpt_stage(run, general, data)
    if change_schedule:
        _adopt_schedule(stage)

    def train() -> None:
        note_unless_live(general, is_first())
        with computing(general, what="cannot be trained"):
            train_specialist(run.recipe, stage, general, data, own_conversations(run, general))

    return ensure_stage(stage, "cpt", train)


def cpt_stage(run: Run, general: Path, data: Path) -> Stage:
    """The cpt stage as the recipe has it, whether it was run or not; the conversations that it
    depends on are written first."""
    inputs = {"general": fingerprint(general), "data": content_hash(data)}
    train = run.recipe.train
    # They are written here, before the stage is known: their hash is part of what it is made from.
    if (conversations := own_conversations(run, general)) is not None:
        inputs["conversations"] = content_hash(conversations)
    config = {"train": identity_of(train), **watch_identity(train, run.recipe.evaluate)}
    return run.stage("cpt", config, inputs, without_effect(train))


def trained_folder(run: Run) -> Path:
    """Where the specialist that a recipe trains stands once it is made, as `train.use` says."""
    use = run.recipe.train.use
    # `last` and `best` are what the cpt stage itself leaves.
    return run.root / (f"cpt-{use}" if use in {"anneal", "average"} else "cpt")


def own_conversations(run: Run, general: Path) -> Path | None:
    """The folder of conversations that training stays near to; None where it stays near none."""
    section = run.recipe.train.self_distillation
    if section is None:
        return None
    from toolkit.pipeline.own_conversations import ensure_conversations

    return ensure_conversations(run, general, section)


def watch_identity(section: TrainSection, evaluate: EvaluateSection) -> dict[str, object]:
    """How the watch scores, for a stage's identity, where its figures decide."""
    if not watch_decides(section):
        return {}
    return {"watch": evaluate.model_dump(mode="json", include={"window_tokens", "context_tokens"})}


def _adopt_schedule(stage: Stage) -> None:
    changes = stage.begun_otherwise()
    other_changes = [change for change in changes if not _is_of_schedule(change.key)]
    if other_changes:
        raise ConfigError(
            f"{stage.work}: more than the schedule was changed since it was begun:\n  "
            + "\n  ".join(map(str, other_changes))
            + "\nPut the former values back, or run without --change-schedule to begin anew."
        )
    for change in changes:
        say(f"  continues with another schedule: {str(change).removeprefix('config.')}")
    if changes:
        stage.adopt()


def _is_of_schedule(key: str) -> bool:
    """Whether a key belongs to the common schedule or to that of one stage."""
    match key.split("."):
        case ["config", "train", "schedule", *_]:
            return True
        case ["config", "train", "stages", *below]:  # the name of a stage may hold dots
            return "schedule" in below[1:]
        case _:
            return False


def refuse_own_schedules(section: TrainSection) -> None:
    """
    Raises:
        ConfigError: the stages have schedules of their own.
    """
    if section.has_own_schedules:
        raise ConfigError(
            "train.stages: have schedules of their own, and annealing is for one common schedule; "
            "give the last stage a schedule that decays."
        )


def anneal_specialist(
    run: Run,
    general: Path,
    data: Path,
    *,
    from_step: int | None = None,
    steps: float | None = None,
) -> Path:
    """Bring the learning rate down from a state of the constant phase, in a folder of its own.

    Training goes on where the state stands in the data; beyond the end of the data, with another
    pass over its last stage in an order of its own.

    Args:
        run: run of the recipe.
        general: folder of the general model.
        data: folder of the data stage.
        from_step: step of the state; by default the latest one of the constant phase.
        steps: number of steps or fraction of those before, in place of `train.anneal.steps`.

    Raises:
        ConfigError: the schedule has no constant phase, or the step is not in it.
        CheckpointError: there is no such state.
    """
    section = run.recipe.train
    constant = constant_steps(_planned_steps(data, section), section.schedule)
    if not constant:
        raise ConfigError(
            f"train.schedule.kind: {section.schedule.kind} has no constant phase to anneal from; "
            "use infinite, wsd or constant."
        )
    states = _states(run, general, data, from_step)
    step = _chosen(states, from_step, constant)
    wanted = section.anneal.steps if steps is None else steps
    num_steps = max(1, round(wanted * step)) if wanted < 1 else round(wanted)
    # The plain name is the one that `train.use: anneal` and later stages look for; branches from a
    # step that was asked for stand beside it.
    name = "cpt-anneal" if from_step is None else f"cpt-anneal-{from_step}"
    config = {
        "train": identity_of(section),
        "from_step": step,
        "steps": num_steps,
        **section.anneal.model_dump(mode="json", exclude={"steps"}),
        **watch_identity(section, run.recipe.evaluate),
    }
    state_hash = hash_json(hash_folder(states / f"state-{step:08d}"))
    inputs = {"general": fingerprint(general), "data": content_hash(data), "state": state_hash}
    stage = run.stage(name, config, inputs, without_effect(section))

    def act() -> None:
        from toolkit.pipeline.training import train_stage

        say(f"  {num_steps} steps from step {step}")
        # The end of the descent is what is wanted: no best state is chosen along it, and none is
        # kept.
        plain = {"use": "last", "keep_best": False, "keep_checkpoints": False}
        train_stage(
            replace_values(section, **plain),
            run.recipe.data,
            run.recipe.evaluate,
            stage,
            general,
            data,
            _descent(data, section, states, step, num_steps, stage.seed),
            conversations=own_conversations(run, general),
        )

    return run.ensure(stage, name, act)


def _descent(
    data: Path, section: TrainSection, states: Path, step: int, num_steps: int, seed: int
) -> Continuation:
    """So many steps from a state on, at rates that fall."""
    from toolkit.train.state import Continuation

    # Steps count from 0: a state after `step` steps was last trained at the rate of step - 1, and
    # the descent begins there without a jump.
    rate = learning_rate(step - 1, _planned_steps(data, section), section.schedule)
    return Continuation(
        states,
        step,
        blocks=_blocks(data, section, step + num_steps, seed),
        rates=anneal_rates(step, num_steps, rate, section.anneal),
        num_steps=step + num_steps,
    )


def _states(run: Run, general: Path, data: Path, from_step: int | None) -> Path:
    """Folder of states: of the complete stage, or of one under way that has the step asked for."""
    stage = cpt_stage(run, general, data)
    # A branch need not wait for the end of training: states of a run under way serve.
    under_way = stage.work / f"state-{from_step or 0:08d}"
    if not stage.is_complete() and stage.has_begun() and under_way.is_dir():
        return stage.work
    if not stage.is_complete() and not run.recipe.train.keep_checkpoints:
        raise ConfigError(
            "train.keep_checkpoints: set it to true, so that states stay to anneal from."
        )
    return train_cpt(run, general, data) / "states"


def _chosen(states: Path, from_step: int | None, constant: range) -> int:
    from toolkit.checkpoint.training_state import saved_steps

    kept = saved_steps(states)
    there = [step for step in kept if step in constant]
    if from_step is None and there:
        return there[-1]
    if from_step in there:
        return int(from_step or 0)
    if from_step in kept:
        raise ConfigError(
            f"--from-step: step {from_step} is not in the constant phase, steps {constant.start} "
            f"to {constant.stop - 1}; states there: {', '.join(map(str, there)) or 'none'}."
        )
    what = "of the constant phase" if from_step is None else f"of step {from_step}"
    raise CheckpointError(
        f"{states}: holds no state {what} (steps {constant.start} to {constant.stop - 1}); there "
        f"are: {', '.join(map(str, kept)) or 'none'}. Set train.keep_checkpoints: true and "
        "train.save_total_limit, put the cpt folder aside, and train again."
    )


def _planned_steps(data: Path, section: TrainSection) -> int:
    from toolkit.data.blocks import Blocks
    from toolkit.train.steps import plan_steps

    return len(plan_steps(Blocks.open(data, section.epochs), section.global_batch_size))


def _blocks(data: Path, section: TrainSection, num_steps: int, seed: int) -> Any:
    """Blocks for so many steps: the recipe's, with further passes over the last stage."""
    from toolkit.data.blocks import Blocks

    blocks = Blocks.open(data, section.epochs, seed)
    # Annealing from a late state may go beyond the end of the data.
    missing = num_steps - _planned_steps(data, section)
    if missing <= 0:
        return blocks
    positions = blocks.stages[-1].num_positions // section.epochs
    more = math.ceil((missing + 1) * section.global_batch_size / positions)
    # The same seed, so that the epochs before are in the very order in which they were trained on.
    longer = Blocks.open(data, section.epochs + more, seed)
    return Blocks((*blocks.stages[:-1], longer.stages[-1]), blocks.largest_token)


def average_specialist(run: Run, cpt: Path, *, last: int | None = None) -> Path:
    """The mean of the last states of the cpt stage, as a model.

    Args:
        run: run of the recipe.
        cpt: folder of the cpt stage.
        last: number of states, in place of `train.average.last`.

    Raises:
        CheckpointError: fewer states were kept.
    """
    from toolkit.checkpoint.average import average_states, average_weights
    from toolkit.checkpoint.training_state import saved_steps

    section = run.recipe.train.average
    wanted = section.last if last is None else last
    states = cpt / "states"
    # The last ones in time, which is not the same as the best.
    steps = saved_steps(states)[-wanted:]
    if len(steps) < wanted:
        raise _too_few(states, len(steps), wanted)
    if section.weights == "anneal":
        weights = decay_weights(steps, run.recipe.train.anneal)
    else:
        decay = section.decay if section.weights == "exponential" else None
        weights = average_weights(len(steps), decay)
    config: dict[str, object] = {"steps": steps, "weights": weights}
    stage = run.stage("cpt-average", config, {"cpt": content_hash(cpt)})

    def act() -> None:
        say(f"  states of steps {', '.join(map(str, steps))}")
        with stage.running() as work:
            average_states(states, steps, weights, cpt, work)
            stage.finish(config)

    return run.ensure(stage, "cpt-average", act)


def _too_few(states: Path, found: int, wanted: int) -> CheckpointError:
    return CheckpointError(
        f"{states}: holds {found} states, and {wanted} are wanted. Set train.keep_checkpoints: "
        f"true and train.save_total_limit to at least {wanted}, put the cpt folder aside, and "
        "train again."
    )
