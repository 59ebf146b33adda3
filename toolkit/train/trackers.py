"""Where the figures of every step go: the metrics log, accelerate's trackers, the progress bar."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from accelerate.utils import imports

from toolkit.data.blocks import StageBlocks
from toolkit.errors import ConfigError
from toolkit.progress import Advance, progress, silence
from toolkit.train.balance import balance_figures
from toolkit.train.config import TrainSection
from toolkit.train.metrics import METRICS, MetricsLog, resident_bytes
from toolkit.train.setup import TrainingSetup
from toolkit.train.state import MonitorFigures, StepOutcome, TrainState, TrainSummary

_INSTALLED = {
    "tensorboard": imports.is_tensorboard_available,
    "wandb": imports.is_wandb_available,
    "trackio": imports.is_trackio_available,
}


def check_trackers(names: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: one is not installed; accelerate would leave it out without a word.
    """
    for name in names:
        if not _INSTALLED[name]():
            raise ConfigError(
                f"train.trackers: {name} is not installed; pip install {name}, or leave it out "
                "(metrics.jsonl is written in any case)."
            )


def plain_settings(section: TrainSection, seed: int) -> dict[str, int | float | str | bool]:
    """Settings of a run, one level deep, since TensorBoard takes no other.

    >>> plain_settings(TrainSection(), 7)["schedule.peak_lr"]
    0.0002
    """
    return {"seed": seed, **dict(_flat(section.model_dump(mode="json"), ""))}


def _flat(
    values: Mapping[str, object], prefix: str
) -> Iterator[tuple[str, int | float | str | bool]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", str(value)


class StepRecorder:
    """Writes down what every step came to.

    Args:
        setup: settings and processes.
        state: the state that the run goes on from.
        metrics: log of the first process.
        advance: moves the progress bar.
        stage_names: names of the stages of the data.
        num_steps: number of steps of the run.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        state: TrainState,
        metrics: MetricsLog,
        advance: Advance,
        stage_names: Sequence[str],
        num_steps: int,
    ) -> None:
        self.metrics = metrics
        self._setup, self._advance = setup, advance
        self._stage_names, self._num_steps = stage_names, num_steps
        self._first_step, self._targets_before = state.step, state.num_targets
        self._began = time.monotonic()

    def record(self, state: TrainState, stage: int, outcome: StepOutcome, seconds: float) -> None:
        """Write down a step that was done.

        Args:
            state: the state after it.
            stage: number of its stage.
            outcome: what it came to.
            seconds: how long it took.
        """
        tokens_per_second = round(outcome.num_targets / seconds, 1)
        memory_bytes = resident_bytes()
        # JSON has no number for what is not finite: such a norm is written as text.
        gradient_norm = outcome.gradient_norm
        row: dict[str, object] = {
            "step": state.step,
            "loss": outcome.loss if outcome.is_finite else None,
            "learning_rate": outcome.learning_rate,
            "gradient_norm": gradient_norm if outcome.is_finite else str(gradient_norm),
            "tokens": outcome.num_targets,
            "tokens_per_second": tokens_per_second,
            "memory_bytes": memory_bytes,
        }
        if len(self._stage_names) > 1:
            row["stage"] = self._stage_names[stage]
        if outcome.divergence is not None:
            row["divergence"] = outcome.divergence if outcome.is_finite else str(outcome.divergence)
        if outcome.expert_counts is not None:
            row |= balance_figures(outcome.expert_counts)
        if self._setup.section.trackers:
            # Trackers draw numbers; what is text or a list is in metrics.jsonl alone.
            numeric_figures = {
                key: value for key, value in row.items() if isinstance(value, (int, float))
            }
            self._setup.accelerator.log(numeric_figures, step=state.step)
        if not outcome.is_finite:
            row["skipped"] = True
        self.metrics.write(**row)
        speed, memory = f"{tokens_per_second:.0f} tokens/s", f"{memory_bytes / 1e9:.1f} GB"
        loss = f"loss {outcome.loss:.3f}"
        if outcome.divergence is not None:
            loss += f"  divergence {outcome.divergence:.3f}"
        self._advance(1, f"{loss}  {speed}  {memory}")

    def summarize(self, state: TrainState, used_step: int) -> TrainSummary:
        """Figures of the run, now that it has ended.

        Args:
            state: the last state.
            used_step: step of the state that the model was left in.
        """
        seconds = max(time.monotonic() - self._began, 1e-9)
        return TrainSummary(
            num_steps=self._num_steps,
            precision=self._setup.section.precision,
            num_targets=state.num_targets,
            first_loss=self.metrics.first_loss,
            last_loss=self.metrics.last_loss,
            tokens_per_second=round((state.num_targets - self._targets_before) / seconds, 1),
            resumed_at_step=self._first_step,
            skipped_steps=state.skipped_steps,
            replay_raised=len(state.raises),
            stopped_by_watch=state.stopped,
            watch=MonitorFigures(state.first_figures, state.last_figures),
            best=state.best,
            used_step=used_step,
        )


@contextlib.contextmanager
def record_steps(
    setup: TrainingSetup,
    state: TrainState,
    stages: Sequence[StageBlocks],
    num_steps: int,
    *,
    seed: int,
    work: Path,
) -> Iterator[StepRecorder]:
    """Open the metrics log, the trackers and the progress bar for the steps of a run.

    Args:
        setup: settings and processes.
        state: the state that the run goes on from.
        stages: stages of the data.
        num_steps: number of steps of the run.
        seed: seed of the run, for the trackers.
        work: folder of the metrics log.
    """
    is_main, has_trackers = setup.accelerator.is_main_process, bool(setup.section.trackers)
    if has_trackers:
        settings = plain_settings(setup.section, seed)
        setup.accelerator.init_trackers("toolkit", config=settings)
    progress_bar = progress("training", num_steps, done=state.step) if is_main else silence()
    # The others keep first and last loss as well, without a file.
    metrics_path = work / METRICS if is_main else None
    try:
        with MetricsLog(metrics_path, keep_steps=state.step) as metrics, progress_bar as advance:
            stage_names = [stage.name for stage in stages]
            yield StepRecorder(setup, state, metrics, advance, stage_names, num_steps)
    finally:
        # Not `end_training`, which also ends the group of processes that writes the model next.
        for tracker in setup.accelerator.trackers if has_trackers else ():
            tracker.finish()
