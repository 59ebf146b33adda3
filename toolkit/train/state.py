"""What a training run knows of itself between two steps, and when that is written to disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from toolkit import __version__
from toolkit.checkpoint.sharded_state import ShardedStateWriter, is_shared_out, load_state
from toolkit.checkpoint.training_state import StateWriter, latest_step
from toolkit.data.blocks import Blocks
from toolkit.progress import say
from toolkit.stage import changed_keys
from toolkit.train.processes import from_first
from toolkit.train.setup import TrainingSetup

_RAISED_BY = 2.0
"""Factor of the share of general text, each time that the forgetting monitor raises it."""


@dataclass(frozen=True)
class Continuation:
    """Further training from a saved state, such as annealing.

    Attributes:
        states: folder of the saved states.
        step: number of the state to begin from.
        blocks: what to train on, from the first step of the run on.
        rates: learning rate of every further step, by its number.
        num_steps: number of steps of the whole run, those before the state included.
    """

    states: Path
    step: int
    blocks: Blocks
    rates: Mapping[int, float]
    num_steps: int


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step came to.

    Attributes:
        loss: mean over the targets, in nats per token, before the update.
        gradient_norm: norm of the whole gradient before it was clipped.
        learning_rate: rate of the step.
        num_targets: targets of the step, over all processes.
        expert_counts: how often each expert of a mixture was chosen, `[L, E]`; None without one.
        divergence: mean over the tokens of the step's conversations, in nats; None without any.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    num_targets: int
    expert_counts: Tensor | None = None
    divergence: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the update was made; one that is not finite is refused."""
        figures = (self.loss, self.gradient_norm, self.divergence or 0.0)
        return all(map(math.isfinite, figures))


@dataclass(frozen=True)
class BestState:
    """The state with the lowest domain figure among those within the monitor's tolerance."""

    step: int
    domain_bits_per_byte: float
    general_bits_per_byte: float | None


@dataclass
class TrainState:
    """What continues a run bit for bit, beside parameters and moments.

    What is random in a step depends on its number alone, and so does the place in the data; neither
    needs a field.

    Attributes:
        step: optimizer steps done, refused ones included.
        bad_steps: steps in a row, up to now, that were not finite.
        skipped_steps: all steps that were not finite.
        raises: number of the stage and first position, for each raise of the share of general text.
        stopped: why the forgetting monitor ended the run, or empty.
        first_figures, last_figures: bits per byte by role, as the monitor first and last saw them.
        best: best state so far, where the recipe asks for it.
        num_targets: targets of all steps done.
        made_by: versions and settings that the bits of a state depend on.
    """

    step: int = 0
    bad_steps: int = 0
    skipped_steps: int = 0
    raises: list[tuple[int, int]] = field(default_factory=list)
    stopped: str = ""
    first_figures: dict[str, float] | None = None
    last_figures: dict[str, float] | None = None
    best: BestState | None = None
    num_targets: int = 0
    made_by: dict[str, str] | None = None

    def count_step(self, outcome: StepOutcome) -> None:
        """Take note of a step that was done."""
        self.step += 1
        self.bad_steps = 0 if outcome.is_finite else self.bad_steps + 1
        self.skipped_steps += not outcome.is_finite
        self.num_targets += outcome.num_targets

    def raise_replay(
        self, blocks: Blocks, stage: int, position: int, general_sources: tuple[str, ...]
    ) -> float:
        """Raise the share of general text from a position of a stage on; returns the new share."""
        self.raises.append((stage, position))
        return blocks.stages[stage].raise_share(position, general_sources, _RAISED_BY)

    def repeat_raises(self, blocks: Blocks, general_sources: tuple[str, ...]) -> None:
        """Give freshly opened blocks the shares that they had when the state was written."""
        for stage, position in self.raises:
            blocks.stages[stage].raise_share(position, general_sources, _RAISED_BY)

    def to_json(self) -> dict[str, object]:
        """Plain values under the names of `state.json`; the writer adds the step."""
        return {
            "bad_steps": self.bad_steps,
            "skipped": self.skipped_steps,
            # A copy: the writer's thread reads it while training goes on.
            "raises": list(self.raises),
            "stopped": self.stopped,
            "watch_start": self.first_figures,
            "watch_end": self.last_figures,
            "best": None if self.best is None else asdict(self.best),
            "num_targets": self.num_targets,
            "made_by": self.made_by,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], step: int) -> TrainState:
        """The state in a `state.json`; what an older one lacks keeps its default."""
        best = values.get("best")
        return cls(
            step=step,
            bad_steps=values.get("bad_steps", 0),
            skipped_steps=values.get("skipped", 0),
            raises=[(stage, position) for stage, position in values.get("raises", ())],
            stopped=values.get("stopped", ""),
            first_figures=values.get("watch_start"),
            last_figures=values.get("watch_end"),
            best=None if best is None else BestState(**best),
            num_targets=values.get("num_targets", 0),
            made_by=values.get("made_by"),
        )


@dataclass(frozen=True)
class MonitorFigures:
    """Bits per byte by role, as the forgetting monitor first and last saw them."""

    start: dict[str, float] | None
    end: dict[str, float] | None


@dataclass(frozen=True)
class TrainSummary:
    """Figures of a run, as its manifest has them.

    Attributes:
        num_steps: steps that the run was to have.
        precision: type of the matrix products, `bf16` or `fp32`.
        num_targets: targets learned from, all steps together.
        first_loss, last_loss: nats per token; None where the step was refused, or there is none.
        tokens_per_second: targets per second since the run was last started.
        resumed_at_step: step that it was last started from.
        skipped_steps: steps that were not finite, whose updates were refused.
        replay_raised: how often the share of general text was raised.
        stopped_by_watch: why the forgetting monitor ended the run, or empty.
        watch: what the forgetting monitor saw.
        best: best state, where the recipe asks for it.
        used_step: step of the state that the model was left in.
    """

    num_steps: int
    precision: str
    num_targets: int
    first_loss: float | None
    last_loss: float | None
    tokens_per_second: float
    resumed_at_step: int
    skipped_steps: int
    replay_raised: int
    stopped_by_watch: str
    watch: MonitorFigures
    best: BestState | None
    used_step: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def load_train_state(
    work: Path, saved_step: int | None, setup: TrainingSetup, continuation: Continuation | None
) -> TrainState:
    """The state that a run goes on from, with parameters and moments put in their places.

    Args:
        work: folder of the run's own states.
        saved_step: number of the latest of them, or None.
        setup: model and optimizer to fill.
        continuation: state to begin from where the run has none of its own.

    Returns:
        The loaded state; a fresh one where there is nothing to load.
    """
    if saved_step is not None:
        saved_values = load_state(work, saved_step, setup.model, setup.optimizer)
        state = TrainState.from_json(saved_values, saved_step)
    elif continuation is not None:
        saved_values = load_state(
            continuation.states, continuation.step, setup.model, setup.optimizer
        )
        state = TrainState.from_json(saved_values, continuation.step)
        # What the run before it decided at its end does not bind this one.
        state.stopped, state.best = "", None
    else:
        state = TrainState()
    state.made_by = _compare_makers(state.made_by, setup)
    return state


def _compare_makers(before: dict[str, str] | None, setup: TrainingSetup) -> dict[str, str]:
    """What the bits of a state depend on besides settings and data; says what has changed since."""
    made_now = {name: metadata.version(name) for name in ("torch", "transformers")}
    made_now |= {"toolkit": __version__, "processes": str(setup.accelerator.num_processes)}
    # Fused blocks round some sums later than plain ones, so that either continues the other, but
    # not to the last bit.
    made_now |= {
        "blocks": "fused" if setup.plain_loss.fused else "plain",
        "precision": setup.section.precision,
    }
    # Older states do not say; they were written by plain blocks in bfloat16.
    if before is not None:
        for change in changed_keys({"blocks": "plain", "precision": "bf16", **before}, made_now):
            say(f"  the state it continues from was written with another {change}: not bit for bit")
    return made_now


class Checkpoints:
    """Writes states as training goes: every so many steps, and each that is the best so far.

    Args:
        work: folder to write to.
        setup: model, optimizer and settings.
        num_steps: number of steps of the run.
    """

    def __init__(self, work: Path, setup: TrainingSetup, num_steps: int) -> None:
        self._work, self._setup, self._num_steps = work, setup, num_steps
        keep = setup.section.save_total_limit
        self._writer: StateWriter | ShardedStateWriter
        if is_shared_out(setup.model):
            self._writer = ShardedStateWriter(work, keep=keep)
            # It writes from the parameters themselves while the next gradients are computed.
            until_read = self._writer.wait_until_read
            inner_optimizer = getattr(setup.optimizer, "optimizer", setup.optimizer)
            inner_optimizer.register_step_pre_hook(lambda *_: until_read())
        else:
            self._writer = StateWriter(work, keep=keep, active=setup.accelerator.is_main_process)

    def after_step(self, state: TrainState) -> None:
        """Begin to write the state if it is due."""
        # The last state is left to `finish`, which writes it only where the recipe keeps it.
        is_due = state.step < self._num_steps and state.step % self._setup.section.save_steps == 0
        is_best = state.best is not None and state.best.step == state.step
        # After a refused step the parameters are those of the step before it, which may be what
        # makes losses infinite: the last good state must stay.
        if (is_due or is_best) and not state.bad_steps and not state.stopped:
            self._save(state)

    def finish(self, state: TrainState) -> None:
        """Wait for what is being written, and write the last state if the recipe keeps it."""
        # First: a state that is still being written has no name yet that `latest_step` could find.
        self._writer.wait()
        saved_step = from_first(latest_step(self._work))  # to save takes all processes
        if self._setup.section.keep_checkpoints and saved_step != state.step:
            self._save(state)
            self._writer.wait()

    def wait(self) -> int | None:
        """Wait for what is being written; returns the step of the latest state, or None."""
        self._writer.wait()
        return latest_step(self._work)

    def _save(self, state: TrainState) -> None:
        self._writer.save(state.step, self._setup.model, self._setup.optimizer, state.to_json())
