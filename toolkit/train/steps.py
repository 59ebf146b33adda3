"""Which blocks every optimizer step of a run learns from: a pure function of the step's number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import overload

from toolkit.data.blocks import Blocks


@dataclass(frozen=True)
class TrainStep:
    """Blocks of one optimizer step: the number of a stage, and positions in it."""

    stage: int
    positions: range


@dataclass(frozen=True)
class TrainPlan:
    """Steps in their order, each computed when it is asked for, in the same time wherever it lies.

    Attributes:
        positions: number of positions of each stage.
        global_batch_size: blocks of a step; the last step of a stage may have fewer.
        steps: numbers of the steps in this plan.
    """

    positions: tuple[int, ...]
    global_batch_size: int
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def steps_by_stage(self) -> list[int]:
        """Number of steps of each stage."""
        return [-(-count // self.global_batch_size) for count in self.positions]

    @overload
    def __getitem__(self, step: int) -> TrainStep: ...

    @overload
    def __getitem__(self, step: slice) -> TrainPlan: ...

    # Slices of a plan are plans, as a continued run takes the beginning of one.
    def __getitem__(self, step: int | slice) -> TrainStep | TrainPlan:
        if isinstance(step, slice):
            return replace(self, steps=self.steps[step])
        step_in_stage = self.steps[step]
        # A step never reaches across two stages: their blocks may differ in length.
        for stage, (num_positions, num_steps) in enumerate(
            zip(self.positions, self.steps_by_stage, strict=True)
        ):
            if step_in_stage < num_steps:
                start = step_in_stage * self.global_batch_size
                stop = min(start + self.global_batch_size, num_positions)
                return TrainStep(stage, range(start, stop))
            step_in_stage -= num_steps
        raise IndexError(step)


def plan_steps(blocks: Blocks, global_batch_size: int) -> TrainPlan:
    """Cut every stage into steps."""
    positions = tuple(stage.num_positions for stage in blocks.stages)
    plan = TrainPlan(positions, global_batch_size, range(0))
    return replace(plan, steps=range(sum(plan.steps_by_stage)))
