"""Stages with schedules and rotary bases of their own: exact rates, and the same bits resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.helpers.token_blocks import make_blocks
from toolkit.checkpoint import training_state
from toolkit.data.blocks import Blocks
from toolkit.errors import ConfigError
from toolkit.stage import Stage
from toolkit.train import state
from toolkit.train.config import ScheduleSection, TrainSection, identity_of
from toolkit.train.rotary import RotarySettings, read_rotary, set_rotary
from toolkit.train.run import run_train
from toolkit.train.schedule import learning_rate
from toolkit.train.steps import plan_steps

LONG = {"schedule": {"peak_lr": 4e-3, "warmup_fraction": 0.5}, "rope_theta": 1e6}


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    chance = np.random.default_rng(0)
    documents = [chance.integers(1, 300, size=int(n)).tolist() for n in chance.integers(5, 90, 30)]
    stages = [("code", 32), ("python", 32), ("long", 64)]
    return make_blocks(tmp_path / "blocks", {"a": documents}, stages=stages)


def section(**values: Any) -> TrainSection:
    base = {
        "precision": "fp32",
        "schedule": {"peak_lr": 1e-2, "warmup_fraction": 0.1},
        "save_steps": 4,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "forgetting_monitor": {"evaluations": 0},
        "stages": {"long": LONG},
    }
    return TrainSection.model_validate({**base, **values})


def run(folder: Path, name: str, given: TrainSection, model: Path) -> Path:
    stage = Stage(folder / name, {}, {}, 7)
    run_train(given, stage, model, folder / "blocks")
    return stage.folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


def test_a_stage_has_its_own_schedule_over_its_own_steps(
    tmp_path: Path, make_model: Callable[..., Path], blocks: Blocks
):
    given = section()
    out = run(tmp_path, "cpt", given, make_model(tmp_path / "model"))
    counts = plan_steps(blocks, 4).steps_by_stage
    shared = counts[0] + counts[1]
    expected = [learning_rate(step, shared, given.schedule) for step in range(shared)]
    last = ScheduleSection.model_validate(LONG["schedule"])
    expected += [learning_rate(step, counts[2], last) for step in range(counts[2])]
    assert [row["learning_rate"] for row in rows(out)] == expected
    names = [
        name for name, n in zip(("code", "python", "long"), counts, strict=True) for _ in range(n)
    ]
    assert [row["stage"] for row in rows(out)] == names


def test_the_rotary_base_changes_with_the_stage_and_is_saved(
    tmp_path: Path, make_model: Callable[..., Path], blocks: Blocks
):
    """Blocks longer than the model was made for are learned at the new base."""
    model = make_model(tmp_path / "model", max_position_embeddings=48)
    out = run(tmp_path, "cpt", section(), model)
    config = json.loads((out / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 1e6
    assert config["max_position_embeddings"] == 64
    # The loss of the first long step is that of the model as it stood, at the new base.
    counts = plan_steps(blocks, 4).steps_by_stage
    before = counts[0] + counts[1]
    assert rows(out)[before]["stage"] == "long"
    short = section(stages={}, keep_checkpoints=True, use="last")
    with pytest.raises(ConfigError, match=r"data\.sequence_length: must be at most 48, .*got 64"):
        run(tmp_path, "refused", short, model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_continues_to_the_same_bits_across_the_change(
    tmp_path: Path,
    make_model: Callable[..., Path],
    blocks: Blocks,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
):
    model = make_model(tmp_path / "model")
    whole = run(tmp_path, "whole", section(precision=precision), model)
    counts = plan_steps(blocks, 4).steps_by_stage
    first_long = counts[0] + counts[1]
    for save_every in (first_long, first_long + 1):  # just before the change, and just after it

        class Killed(training_state.StateWriter):
            def save(self, step: int, *rest: Any) -> None:
                super().save(step, *rest)
                self.wait()
                raise KeyboardInterrupt

        name = f"cut-{save_every}"
        given = section(save_steps=save_every, precision=precision)
        monkeypatch.setattr(state, "StateWriter", Killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, name, given, model)
        monkeypatch.undo()
        cut = run(tmp_path, name, given, model)
        assert training_state.latest_step(cut) is None
        for file in ("model.safetensors", "config.json"):
            assert (cut / file).read_bytes() == (whole / file).read_bytes()
        assert [r["loss"] for r in rows(cut)] == [r["loss"] for r in rows(whole)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_base_matters(
    tmp_path: Path, make_model: Callable[..., Path], blocks: Blocks, precision: str
):
    model = make_model(tmp_path / "model")
    changed = run(tmp_path, "changed", section(precision=precision), model)
    same = section(stages={"long": {"schedule": LONG["schedule"]}}, precision=precision)
    kept = run(tmp_path, "kept", same, model)
    counts = plan_steps(blocks, 4).steps_by_stage
    before = counts[0] + counts[1]
    a, b = ([row["loss"] for row in rows(folder)] for folder in (changed, kept))
    assert a[:before] == b[:before]
    assert a[before] != b[before]
    assert "rope_theta" in json.loads((kept / "config.json").read_text())["rope_parameters"]


def test_a_changed_model_is_the_one_that_is_loaded_again(
    tmp_path: Path, make_model: Callable[..., Path]
):
    folder = make_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = read_rotary(model)
    assert given == RotarySettings(10_000.0, 256)
    ids = torch.arange(1, 40)[None]
    start = model(input_ids=ids).logits
    set_rotary(model, RotarySettings(1e6, 512), given)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert read_rotary(again) == RotarySettings(1e6, 512)
    logits = model(input_ids=ids).logits
    assert torch.equal(again(input_ids=ids).logits, logits)
    assert not torch.allclose(logits, start)
    set_rotary(model, RotarySettings(), given)
    assert torch.equal(model(input_ids=ids).logits, start)


def test_a_model_without_rotary_positions_says_so():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16))
    with pytest.raises(ConfigError, match=r"train\.stages: a model of type gpt2"):
        set_rotary(model, RotarySettings(1e6, None), read_rotary(model))


def test_settings_without_stages_have_the_identity_they_had():
    assert "stages" not in identity_of(section(stages={}))
    assert identity_of(section())["stages"]["long"]["rope_theta"] == 1e6


def test_annealing_is_for_one_schedule():
    with pytest.raises(ValueError, match="anneal is for one schedule"):
        section(use="anneal", keep_checkpoints=True)
