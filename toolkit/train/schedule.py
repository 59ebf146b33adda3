"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from toolkit.train.config import AnnealSection, ScheduleSection, TrainSection

if TYPE_CHECKING:  # plans and pictures ask for single rates, and load no arrays for them
    from toolkit.data.blocks import StageBlocks
    from toolkit.train.steps import TrainPlan


class RunSchedule:
    """Learning rate of every step of a run.

    Args:
        section: common schedule, and those of single stages.
        steps: steps of the run.
        stages: stages of the data.
        rates: rates by step in place of any schedule, as annealing has them.
    """

    def __init__(
        self,
        section: TrainSection,
        steps: TrainPlan,
        stages: Sequence[StageBlocks],
        rates: Mapping[int, float] | None = None,
    ) -> None:
        self._section, self._num_steps, self._rates = section, len(steps), rates
        self._steps_by_stage = steps.steps_by_stage
        training = [section.stages.get(stage.name) for stage in stages]
        self._stage_schedules = [
            stage.schedule if stage is not None else None for stage in training
        ]

    def rate_of(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        if self._rates:
            return self._rates[step]
        common = self._section.schedule
        if self._section.has_own_schedules:
            return rate_in_stages(step, self._steps_by_stage, self._stage_schedules, common)
        return learning_rate(step, self._num_steps, common)


def learning_rate(step: int, num_steps: int, schedule: ScheduleSection) -> float:
    """The learning rate of one step.

    Args:
        step: optimizer step, from 0.
        num_steps: number of steps of the whole run.
        schedule: kind, peak, and fractions of the steps.

    Returns:
        The learning rate of this step; the first step already learns.

    Reference:
        Ibrahim et al. 2024 (cosine), Hu et al. 2024 and Hägele et al. 2024 (wsd), Singh et al. 2025
        (infinite), Parmar et al. 2024 (minimum).

    >>> half = ScheduleSection(peak_lr=1.0, warmup_fraction=0.5, final_lr_fraction=0.0)
    >>> [round(learning_rate(step, 4, half), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    >>> wsd = ScheduleSection(
    ...     kind="wsd", peak_lr=1.0, warmup_fraction=0.25, decay_fraction=0.5, final_lr_fraction=0.0
    ... )
    >>> [round(learning_rate(step, 8, wsd), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.293, 0.134]
    """
    peak = schedule.peak_lr
    rewarm_steps = max(1, round(num_steps * schedule.warmup_fraction))
    if schedule.kind == "minimum":
        rewarm_steps = 0  # it goes on at the rate that pre-training ended with
    if step < rewarm_steps:
        return peak * (step + 1) / rewarm_steps  # not from 0: a step at 0 would be wasted
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        decay_steps = round(num_steps * schedule.decay_fraction)
        step_of_decay = step - (num_steps - decay_steps)
        if step_of_decay < 0:
            return peak
        # The decay's first step has the peak still; annealing, which follows a step at the constant
        # rate, falls at once (`anneal_rates`).
        return peak * annealed(step_of_decay / decay_steps, schedule.final_lr_fraction)
    if schedule.kind == "infinite":
        cooldown_steps = round(num_steps * schedule.cooldown_fraction)
        # After the cooldown the rate stays: any later step is a state to anneal from.
        way_down = min(1.0, (step - rewarm_steps) / max(1, cooldown_steps))
        return peak * _cosine(way_down, schedule.constant_lr_fraction)
    way_down = (step - rewarm_steps) / max(1, num_steps - rewarm_steps)
    return peak * _cosine(way_down, schedule.final_lr_fraction)


def rate_in_stages(
    step: int,
    steps_by_stage: Sequence[int],
    stage_schedules: Sequence[ScheduleSection | None],
    common: ScheduleSection,
) -> float:
    """The learning rate of one step where stages may have schedules of their own.

    Args:
        step: optimizer step, from 0.
        steps_by_stage: number of steps of each stage.
        stage_schedules: schedule of each stage over its own steps; None for the common one.
        common: schedule of the other stages, over their steps together.

    Raises:
        IndexError: the step is beyond the last stage.

    >>> rise = ScheduleSection(peak_lr=1.0, warmup_fraction=1.0)
    >>> last = ScheduleSection(peak_lr=9.0, warmup_fraction=1.0)
    >>> [rate_in_stages(step, [2, 2, 2], [None, last, None], rise) for step in range(6)]
    [0.25, 0.5, 4.5, 9.0, 0.75, 1.0]
    """
    stages = list(zip(steps_by_stage, stage_schedules, strict=True))
    # The common schedule runs over its own stages alone, as though they followed one another.
    common_steps = sum(num_steps for num_steps, schedule in stages if schedule is None)
    common_step, step_in_stage = 0, step
    for num_steps, schedule in stages:
        if step_in_stage < num_steps and schedule is not None:
            return learning_rate(step_in_stage, num_steps, schedule)
        if step_in_stage < num_steps:
            return learning_rate(common_step + step_in_stage, common_steps, common)
        step_in_stage -= num_steps
        # The common schedule passes over a stage with its own, as though it were not there.
        common_step += num_steps if schedule is None else 0
    raise IndexError(step)


def annealed(way_down: float, final_lr_fraction: float, shape: str = "sqrt") -> float:
    """Multiplier that falls from 1 to `final_lr_fraction` as `way_down` goes from 0 to 1.

    >>> [annealed(0.25, 0.0, shape) for shape in ("sqrt", "linear")]
    [0.5, 0.75]
    """
    if shape == "cosine":
        return _cosine(way_down, final_lr_fraction)
    fallen = math.sqrt(way_down) if shape == "sqrt" else way_down
    return final_lr_fraction + (1.0 - final_lr_fraction) * (1.0 - fallen)


def constant_steps(num_steps: int, schedule: ScheduleSection) -> range:
    """Numbers of done steps after which the rate is at its constant: states to anneal from.

    Empty for schedules that have no constant.

    >>> wsd = ScheduleSection(kind="wsd", warmup_fraction=0.2, decay_fraction=0.5)
    >>> constant_steps(10, wsd)
    range(2, 6)
    """
    rewarm_steps = max(1, round(num_steps * schedule.warmup_fraction))
    if schedule.kind == "constant":
        return range(rewarm_steps, num_steps + 1)
    if schedule.kind == "wsd":
        return range(rewarm_steps, num_steps - round(num_steps * schedule.decay_fraction) + 1)
    if schedule.kind == "infinite":
        cooldown_steps = round(num_steps * schedule.cooldown_fraction)
        # One more, as these are steps done: the cooldown's last one comes near the constant, and
        # the one after it has it.
        return range(rewarm_steps + cooldown_steps + 1, num_steps + 1)
    return range(0)


def anneal_rates(
    from_step: int, steps: int, rate: float, section: AnnealSection
) -> dict[int, float]:
    """Rates of the steps from `from_step` on: the first already falls, and the last still learns.

    >>> anneal_rates(7, 3, 1.0, AnnealSection(shape="linear"))
    {7: 0.75, 8: 0.5, 9: 0.25}
    """
    return {
        from_step + n: rate
        * annealed((n + 1) / (steps + 1), section.final_lr_fraction, section.shape)
        for n in range(steps)
    }


def decay_weights(steps: Sequence[int], section: AnnealSection) -> list[float]:
    """Weights of kept states in a mean that emulates a decay between the first and the last.

    The mean of states is the first one plus their changes, each as often as the weights from it on
    sum to. So these sums are the rates that a decay would have given the steps of each change,
    against the constant one: exact where gradients do not depend on the parameters.

    Args:
        steps: of the states, ascending.
        section: shape and end of the decay.

    Returns:
        Weights that sum to 1, the first state's first.

    Reference:
        Tian et al. 2025, WSM: decay-free learning rate schedule via checkpoint merging,
        https://arxiv.org/abs/2507.17634.

    >>> decay_weights([10, 11, 12, 13], AnnealSection(shape="linear"))
    [0.25, 0.25, 0.25, 0.25]
    """
    rates = anneal_rates(steps[0], steps[-1] - steps[0], 1.0, section)
    shares = [
        sum(rates[step] for step in range(first, last)) / (last - first)
        for first, last in pairwise(steps)
    ]
    # The first state is in the mean in full, and nothing comes after the last.
    sums = [1.0, *shares, 0.0]
    return [sums[place] - sums[place + 1] for place in range(len(steps))]


def _cosine(way_down: float, final_lr_fraction: float) -> float:
    return final_lr_fraction + (1.0 - final_lr_fraction) * 0.5 * (
        1.0 + math.cos(math.pi * way_down)
    )
