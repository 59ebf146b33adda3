"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

from toolkit.train.config import ScheduleSection


def learning_rate(step: int, num_steps: int, schedule: ScheduleSection) -> float:
    """Re-warm linearly, then re-decay along a cosine.

    Args:
        step: optimizer step, from 0.
        num_steps: of the whole run.
        schedule: peak, share of steps spent re-warming, and where the decay ends.

    Returns:
        The learning rate of this step; the first step already learns.

    Reference:
        Ibrahim et al. 2024, Simple and scalable strategies to continually pre-train LLMs.

    >>> half = ScheduleSection(peak_lr=1.0, rewarm_fraction=0.5, final_fraction=0.0)
    >>> [round(learning_rate(step, 4, half), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rewarm_steps = max(1, round(num_steps * schedule.rewarm_fraction))
    if step < rewarm_steps:
        return schedule.peak_lr * (step + 1) / rewarm_steps
    share = (step - rewarm_steps) / max(1, num_steps - rewarm_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * share))
    return schedule.peak_lr * (schedule.final_fraction + (1.0 - schedule.final_fraction) * cosine)
