"""The forgetting monitor: when to score the model while it trains, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit.data.blocks import Blocks
from toolkit.progress import say
from toolkit.train.config import ForgettingMonitorSection
from toolkit.train.metrics import MetricsLog
from toolkit.train.model import call_on_model
from toolkit.train.processes import from_first
from toolkit.train.setup import TrainingSetup
from toolkit.train.state import BestState, Continuation, TrainState
from toolkit.train.steps import TrainPlan

ScoreRoles = Callable[[Any], dict[str, float]]
"""Given the model, bits per byte by role: `domain`, and `general` where there is such text."""


def look_steps(num_steps: int, evaluations: int) -> set[int]:
    """After how many steps to score: spread evenly, at the start and at the end.

    >>> sorted(look_steps(10, 1))
    [0, 5, 10]
    """
    if evaluations == 0:
        return set()
    return {round(num_steps * part / (evaluations + 1)) for part in range(evaluations + 2)}


@dataclass(frozen=True)
class MonitorVerdict:
    """What one scoring says.

    Attributes:
        domain_bits_per_byte, general_bits_per_byte: figures of the model as it is now; None where
            the recipe has no general text.
        is_beyond: whether general text got worse by more than the tolerance.
        text: sentence for the terminal.
    """

    domain_bits_per_byte: float
    general_bits_per_byte: float | None
    is_beyond: bool
    text: str


def judge(
    now: dict[str, float], at_start: dict[str, float], section: ForgettingMonitorSection
) -> MonitorVerdict:
    """Compare figures by role with the first ones."""
    rises = {role: now[role] - at_start[role] for role in now}
    is_beyond = rises.get("general", 0.0) > section.tolerance
    figures = ", ".join(f"{role} {now[role]:.4f} ({rises[role]:+.4f})" for role in now)
    verdict_text = f"bits per byte: {figures}"
    if is_beyond:
        verdict_text += f", more than the tolerance of {section.tolerance:g}"
    return MonitorVerdict(now["domain"], now.get("general"), is_beyond, verdict_text)


def is_better(verdict: MonitorVerdict, best: BestState | None) -> bool:
    """Whether a verdict is the best so far: lowest on the domain, of those within the tolerance."""
    if verdict.is_beyond:
        return False
    return best is None or verdict.domain_bits_per_byte < best.domain_bits_per_byte


class ForgettingMonitor:
    """Scores the model after some steps, remembers the best state, and acts beyond the tolerance.

    Args:
        score_roles: scores the model; None turns the monitor off.
        setup: model and settings.
        blocks: blocks of the run, whose share of general text it may raise.
        steps: steps of the run.
        general_sources: names of the sources of general text.
        continuation: another run's state that this one began from.
        metrics: log that is told of figures and of raised shares.
    """

    def __init__(
        self,
        score_roles: ScoreRoles | None,
        setup: TrainingSetup,
        blocks: Blocks,
        steps: TrainPlan,
        general_sources: tuple[str, ...],
        continuation: Continuation | None,
        metrics: MetricsLog,
    ) -> None:
        self._score_roles, self._setup, self._metrics = score_roles, setup, metrics
        self._blocks, self._steps, self._general_sources = blocks, steps, general_sources
        begin = continuation.step if continuation is not None else 0
        after_steps = look_steps(len(steps) - begin, setup.section.forgetting_monitor.evaluations)
        # A continued run is looked at over its own steps, from the state that it begins from on.
        self._look_steps = {begin + step for step in after_steps}

    def look(self, state: TrainState) -> MonitorVerdict | None:
        """Score the model if that is due after this step."""
        if self._score_roles is None or state.step not in self._look_steps:
            return None
        setup = self._setup
        figures = call_on_model(self._score_roles, setup.loss_module, setup.plain_loss)
        # Whether to stop, to raise a share or to keep the state follows from them.
        figures = from_first(figures)
        # Scoring leaves the model in evaluation mode, in which no dropout is drawn and nothing
        # fused.
        setup.model.train()
        # Kept with the state, so that a continued run judges by the first figures of the run it
        # continues.
        state.first_figures = state.first_figures or figures
        state.last_figures = figures
        metrics_row = {f"{role}_bits_per_byte": figure for role, figure in figures.items()}
        self._metrics.write(step=state.step, **metrics_row)
        verdict = judge(figures, state.first_figures, setup.section.forgetting_monitor)
        if state.step and setup.accelerator.is_main_process:
            say(f"  step {state.step}: {verdict.text}")
        return verdict

    def after_step(self, state: TrainState) -> None:
        """Score if due; then stop the run or raise the share of general text, if so wanted."""
        verdict = self.look(state)
        if verdict is None:
            return
        section = self._setup.section
        # The parameters after a refused step are those of the step before it, under whose number
        # they are not saved (see `Checkpoints.after_step`).
        is_saved = section.keeps_best and not state.bad_steps
        if is_saved and is_better(verdict, state.best):
            state.best = BestState(
                state.step, verdict.domain_bits_per_byte, verdict.general_bits_per_byte
            )
        # After the last step there is nothing left to stop, and no block to raise a share of.
        if not verdict.is_beyond or state.step == len(self._steps):
            return
        if section.forgetting_monitor.action == "stop":
            state.stopped = f"step {state.step}: {verdict.text}"
        if section.forgetting_monitor.action == "raise_replay":
            next_step = self._steps[state.step]
            new_share = state.raise_replay(
                self._blocks, next_step.stage, next_step.positions[0], self._general_sources
            )
            self._metrics.write(step=state.step, replay_share=new_share)
