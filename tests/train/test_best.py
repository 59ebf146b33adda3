"""The best state: kept beside the latest, and taken as the result when the recipe says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.helpers.token_blocks import make_blocks
from toolkit.checkpoint import training_state
from toolkit.data.blocks import Blocks
from toolkit.errors import CheckpointError
from toolkit.stage import Stage
from toolkit.train import loop, monitor, setup, state
from toolkit.train.config import TrainSection
from toolkit.train.loop import train
from toolkit.train.model import NextTokenLoss
from toolkit.train.run import run_train
from toolkit.train.state import BestState, StepOutcome

DOMAIN = [3.0, 2.0, 1.0, 1.5, 0.5]
GENERAL = [1.0, 1.0, 1.02, 1.01, 1.2]
"""Looks before training and after every two steps: the third is the best; the last forgot."""


@pytest.fixture
def data(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    make_model(tmp_path / "model")
    chance = np.random.default_rng(0)
    documents = [chance.integers(1, 300, size=31).tolist() for _ in range(16)]
    make_blocks(tmp_path / "blocks", {"a": documents})
    return tmp_path


def section(**values: Any) -> TrainSection:
    base = {
        "precision": "fp32", "schedule": {"peak_lr": 1e-2}, "save_steps": 1,
        "forgetting_monitor": {"evaluations": 3, "tolerance": 0.05}, "keep_best": True,
    }  # fmt: skip
    return TrainSection.model_validate({**base, **values})


def scores(first: int = 0) -> Callable[[Any], dict[str, float]]:
    looks = iter(zip(DOMAIN[first:], GENERAL[first:], strict=True))

    def watch(_model: Any) -> dict[str, float]:
        domain, general = next(looks)
        return {"domain": domain, "general": general}

    return watch


def fresh(data: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(data / "model")


def test_the_best_state_is_kept_beside_the_latest(data: Path):
    (data / "w").mkdir()
    given = section(keep_checkpoints=True)
    blocks = Blocks.open(data / "blocks")
    results = train(fresh(data), blocks, given, seed=7, work=data / "w", score_roles=scores())
    assert results.num_steps == 8
    assert results.best == BestState(4, domain_bits_per_byte=1.0, general_bits_per_byte=1.02)
    assert results.used_step == 8
    assert training_state.saved_steps(data / "w") == [4, 8]


def test_the_specialist_is_the_best_state_when_said(data: Path):
    stage = Stage(data / "cpt", {}, {}, 7)
    run_train(section(use="best"), stage, data / "model", data / "blocks", score_roles=scores())
    assert training_state.saved_steps(data / "cpt/states") == [4]
    parameters = load_file(data / "cpt/states/state-00000004/parameters.safetensors")
    model = load_file(data / "cpt/model.safetensors")
    assert all(model[name].equal(value) for name, value in parameters.items())
    assert not list(data.glob("cpt/state-*"))


def test_a_look_after_a_refused_step_finds_no_best(data: Path, monkeypatch: pytest.MonkeyPatch):
    """The state of such a step is not saved: nothing could be loaded in the end."""
    step = loop.optimizer_step

    def refused_fourth(*given: Any, **named: Any) -> StepOutcome:
        if named["step"] == 3:
            return StepOutcome(float("nan"), 1.0, 1e-2, 1)
        return step(*given, **named)

    monkeypatch.setattr(loop, "optimizer_step", refused_fourth)
    stage = Stage(data / "cpt", {}, {}, 7)
    run_train(section(use="best"), stage, data / "model", data / "blocks", score_roles=scores())
    # The looks after steps 2, 4, 6 and 8: the best is after 4, but refused; the last forgot.
    assert training_state.saved_steps(data / "cpt/states") == [6]


def test_the_first_process_s_figures_decide(data: Path, monkeypatch: pytest.MonkeyPatch):
    figures = [{"domain": 1.0 - n / 10, "general": 1.0} for n in range(5)]
    monkeypatch.setattr(monitor, "from_first", lambda _: figures.pop(0))
    (data / "w").mkdir()
    blocks = Blocks.open(data / "blocks")
    results = train(fresh(data), blocks, section(), seed=7, work=data / "w", score_roles=scores())
    assert results.best == BestState(8, domain_bits_per_byte=0.6, general_bits_per_byte=1.0)


def test_that_no_state_was_within_the_tolerance_is_said(
    data: Path, capsys: pytest.CaptureFixture[str]
):
    looks = iter([1.0, 2.0, 2.0, 2.0, 2.0])
    stage = Stage(data / "cpt", {}, {}, 7)
    run_train(
        section(use="best"),
        stage,
        data / "model",
        data / "blocks",
        score_roles=lambda _: {"domain": 1.0, "general": next(looks)},
    )
    said = capsys.readouterr().out
    assert "saw no state within its tolerance: the specialist is the last state, of step 8" in said
    assert "  8 steps, loss" in said


def test_the_steps_of_a_run_that_was_stopped_are_said(
    data: Path, capsys: pytest.CaptureFixture[str]
):
    looks = iter([(2.0, 1.0), (1.0, 1.0), (1.0, 2.0)])
    given = section(
        use="best", forgetting_monitor={"evaluations": 3, "tolerance": 0.05, "action": "stop"}
    )
    run_train(
        given,
        Stage(data / "cpt", {}, {}, 7),
        data / "model",
        data / "blocks",
        score_roles=lambda _: dict(zip(("domain", "general"), next(looks), strict=True)),
    )
    said = capsys.readouterr().out
    assert "  4 of 8 steps, loss" in said
    assert "the specialist is the best state, of step 2" in said


def test_a_killed_run_finds_the_same_best(data: Path, monkeypatch: pytest.MonkeyPatch):
    whole = Stage(data / "whole", {}, {}, 7)
    run_train(section(use="best"), whole, data / "model", data / "blocks", score_roles=scores())

    class Killed(training_state.StateWriter):
        def save(self, step: int, *rest: object) -> None:  # type: ignore[override]
            super().save(step, *rest)  # type: ignore[arg-type]
            self.wait()
            if step == 5:
                raise KeyboardInterrupt

    cut = Stage(data / "cut", {}, {}, 7)
    with monkeypatch.context() as patch:
        patch.setattr(state, "StateWriter", Killed)
        with pytest.raises(KeyboardInterrupt):
            run_train(
                section(use="best"), cut, data / "model", data / "blocks", score_roles=scores()
            )
    assert training_state.saved_steps(data / "cut.partial") == [4, 5]
    run_train(section(use="best"), cut, data / "model", data / "blocks", score_roles=scores(3))
    a, b = (data / name / "model.safetensors" for name in ("whole", "cut"))
    assert a.read_bytes() == b.read_bytes()


def test_a_stage_killed_while_it_finishes_loses_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
):
    """Hashing a large model takes minutes: states and identity must be there until it is done."""
    from toolkit import stage as manifest

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    stage = Stage(data / "cpt", {}, {}, 7)
    given = section(keep_checkpoints=True)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "hash_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            run_train(given, stage, data / "model", data / "blocks", score_roles=scores())
    assert stage.has_begun()

    def no_step(*_: object) -> None:
        raise AssertionError("it trained again")

    monkeypatch.setattr(loop, "settle_packing", lambda _, plain, *__: plain.fused)

    monkeypatch.setattr(NextTokenLoss, "forward", no_step)
    run_train(given, stage, data / "model", data / "blocks", score_roles=scores(4))
    assert stage.is_complete()
    assert training_state.saved_steps(data / "cpt/states") == [4, 8]
    assert sorted(p.name for p in (data / "cpt").iterdir() if "state" in p.name) == ["states"]


def test_a_damaged_state_is_named(data: Path):
    (data / "w").mkdir()
    blocks = Blocks.open(data / "blocks")
    given = section(save_total_limit=2)
    train(fresh(data), blocks, given, seed=7, work=data / "w", score_roles=scores())
    last = data / "w" / f"state-{training_state.saved_steps(data / 'w')[-1]:08d}"
    (last / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"is damaged: .* state\.json; .*continues from"):
        train(fresh(data), blocks, given, seed=7, work=data / "w", score_roles=scores())


def test_a_state_of_other_versions_is_told_of(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (data / "w").mkdir()
    blocks = Blocks.open(data / "blocks")
    train(fresh(data), blocks, section(), seed=7, work=data / "w", score_roles=scores())
    assert "not bit for bit" not in capsys.readouterr().out
    monkeypatch.setattr(state, "__version__", "9.9")
    train(fresh(data), blocks, section(), seed=7, work=data / "w", score_roles=scores(4))
    assert '"9.9": not bit for bit' in capsys.readouterr().out


def test_a_state_of_blocks_that_were_not_fused_is_told_of(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (data / "w").mkdir()
    blocks, given = Blocks.open(data / "blocks"), section(precision="bf16")
    train(fresh(data), blocks, given, seed=7, work=data / "w", score_roles=scores())
    monkeypatch.setattr(setup, "may_fuse", lambda *_, **__: False)
    train(fresh(data), blocks, given, seed=7, work=data / "w", score_roles=scores(4))
    assert 'blocks: "fused" -> "plain": not bit for bit' in capsys.readouterr().out
