"""A run resumed after a million steps begins at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from tests.helpers.token_blocks import make_blocks
from toolkit.checkpoint.training_state import StateWriter
from toolkit.train.config import TrainSection
from toolkit.train.loop import train
from toolkit.train.steps import TrainPlan, TrainStep
from toolkit.train.trainable import parameter_groups

MILLION = 1_000_000


def test_steps_are_worked_out_when_asked_for():
    plan = TrainPlan((10**15, 7), 4, range(25 * 10**13 + 2))
    assert len(plan) == 25 * 10**13 + 2
    assert plan[10**14] == TrainStep(0, range(4 * 10**14, 4 * 10**14 + 4))
    assert plan[25 * 10**13 + 1] == TrainStep(1, range(4, 7))
    few = plan[:3]
    assert len(few) == 3
    assert [step.positions[0] for step in few] == [0, 4, 8]


def test_position_one_million_within_two_seconds(tmp_path: Path, make_model: Callable[..., Path]):
    blocks = make_blocks(tmp_path / "blocks", {"a": [[5] * (8 * MILLION - 1)], "b": [[6] * 7]}, 8)
    assert blocks.stages[0].num_positions == MILLION + 1
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))
    section = TrainSection.model_validate(
        {"global_batch_size": 1, "precision": "fp32", "forgetting_monitor": {"evaluations": 0}}
    )
    # What one step costs wherever it is, once kernels are set up: the distance comes on top.
    few = make_blocks(tmp_path / "few", {"a": [[5] * 7]}, 8)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        AcceleratorState._reset_state(reset_partial_state=True)
        began = time.process_time()  # of this process alone: others may be busy
        train(model, few, section, seed=1, work=tmp_path / name)
        near = time.process_time() - began
    AcceleratorState._reset_state(reset_partial_state=True)

    writer = StateWriter(tmp_path)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1))
    # The watch had raised replay late in the run.
    state = {"bad_steps": 0, "skipped": 0, "raises": [[0, MILLION - 5000]], "watch_start": None}
    writer.save(MILLION, model, optimizer, state)
    writer.wait()
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "loss": 2.5}}\n' for step in range(1, MILLION + 50))
    )
    began = time.process_time()
    results = train(model, blocks, section, seed=1, work=tmp_path, general_sources=("b",))
    assert time.process_time() - began - near < 1.5
    assert results.resumed_at_step == MILLION
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == MILLION + 1
    assert [json.loads(line)["step"] for line in lines[-2:]] == [MILLION, MILLION + 1]
