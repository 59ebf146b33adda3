"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolkit.train.config import AnnealSection, ScheduleSection


def learning_rate(step: int, num_steps: int, schedule: ScheduleSection) -> float:
    """The learning rate of one step.

    Args:
        step: optimizer step, from 0.
        num_steps: of the whole run.
        schedule: kind, peak, and shares of the steps.

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
    rewarm = max(1, round(num_steps * schedule.warmup_fraction))
    if schedule.kind == "minimum":
        rewarm = 0
    if step < rewarm:
        return peak * (step + 1) / rewarm
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        decay = round(num_steps * schedule.decay_fraction)
        begun = step - (num_steps - decay)
        return peak if begun < 0 else peak * annealed(begun / decay, schedule.final_lr_fraction)
    if schedule.kind == "infinite":
        cooldown = round(num_steps * schedule.cooldown_fraction)
        share = min(1.0, (step - rewarm) / max(1, cooldown))
        return peak * _cosine(share, schedule.constant_lr_fraction)
    share = (step - rewarm) / max(1, num_steps - rewarm)
    return peak * _cosine(share, schedule.final_lr_fraction)


def rate_in_stages(
    step: int,
    num_steps: Sequence[int],
    own: Sequence[ScheduleSection | None],
    common: ScheduleSection,
) -> float:
    """The learning rate of one step where stages may have schedules of their own.

    Args:
        step: optimizer step, from 0.
        num_steps: of each stage.
        own: schedule of each stage, over its own steps.
        common: of the other stages, over their steps together.

    Raises:
        IndexError: the step is beyond the last stage.

    >>> rise = ScheduleSection(peak_lr=1.0, warmup_fraction=1.0)
    >>> last = ScheduleSection(peak_lr=9.0, warmup_fraction=1.0)
    >>> [rate_in_stages(step, [2, 2, 2], [None, last, None], rise) for step in range(6)]
    [0.25, 0.5, 4.5, 9.0, 0.75, 1.0]
    """
    shared = sum(n for n, schedule in zip(num_steps, own, strict=True) if schedule is None)
    before, within = 0, step
    for count, schedule in zip(num_steps, own, strict=True):
        if within < count and schedule is not None:
            return learning_rate(within, count, schedule)
        if within < count:
            return learning_rate(before + within, shared, common)
        within -= count
        before += count if schedule is None else 0
    raise IndexError(step)


def annealed(share: float, final_lr_fraction: float, shape: str = "sqrt") -> float:
    """Multiplier that falls from 1 to `final_lr_fraction`, `share` of the way down.

    >>> [annealed(0.25, 0.0, shape) for shape in ("sqrt", "linear")]
    [0.5, 0.75]
    """
    if shape == "cosine":
        return _cosine(share, final_lr_fraction)
    fallen = math.sqrt(share) if shape == "sqrt" else share
    return final_lr_fraction + (1.0 - final_lr_fraction) * (1.0 - fallen)


def constant_steps(num_steps: int, schedule: ScheduleSection) -> range:
    """Numbers of done steps after which the rate is at its constant: states to anneal from.

    Empty for schedules that have no constant.

    >>> wsd = ScheduleSection(kind="wsd", warmup_fraction=0.2, decay_fraction=0.5)
    >>> constant_steps(10, wsd)
    range(2, 6)
    """
    rewarm = max(1, round(num_steps * schedule.warmup_fraction))
    if schedule.kind == "constant":
        return range(rewarm, num_steps + 1)
    if schedule.kind == "wsd":
        return range(rewarm, num_steps - round(num_steps * schedule.decay_fraction) + 1)
    if schedule.kind == "infinite":
        cooldown = round(num_steps * schedule.cooldown_fraction)
        return range(rewarm + cooldown + 1, num_steps + 1)
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


def _cosine(share: float, final_lr_fraction: float) -> float:
    return final_lr_fraction + (1.0 - final_lr_fraction) * 0.5 * (1.0 + math.cos(math.pi * share))
