"""Annealed and averaged specialists: made of kept states, in folders of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.checkpoint import training_state
from toolkit.errors import CheckpointError, ConfigError
from toolkit.pipeline.models import ensure_anneal, ensure_average, ensure_cpt, ensure_specialist
from toolkit.stage import read_manifest
from toolkit.train import state

CONSTANT = {
    "schedule": {"kind": "constant", "peak_lr": 5e-3, "warmup_fraction": 0.1},
    "keep_checkpoints": True,
    "save_total_limit": 3,
    "save_steps": 4,
    "forgetting_monitor": {"evaluations": 1},
}


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, make_model)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows(folder) if "loss" in row]


def test_annealing_goes_on_where_the_state_stands(project: Path):
    run = open_run(project, {"train": {**CONSTANT, "anneal": {"steps": 4, "shape": "linear"}}})
    folder = ensure_anneal(run)
    assert folder == Path("runs/tiny/cpt-anneal")
    last = read_manifest(Path("runs/tiny/cpt"))["results"]["num_steps"]
    steps = trained(folder)
    assert [row["step"] for row in steps] == list(range(last + 1, last + 5))
    assert [round(row["learning_rate"], 9) for row in steps] == [0.004, 0.003, 0.002, 0.001]
    assert steps[-1]["loss"] < trained(Path("runs/tiny/cpt"))[0]["loss"]
    # Scored before and after, and against the general model's start.
    looks = [row["step"] for row in rows(folder) if "general_bits_per_byte" in row]
    assert (looks[0], looks[-1]) == (last, last + 4)
    cpt, annealed = (load_file(f / "model.safetensors") for f in (folder.parent / "cpt", folder))
    assert any(not cpt[name].equal(annealed[name]) for name in cpt)


def test_annealing_from_an_earlier_state_repeats_the_runs_own_steps(project: Path):
    """From step N at an unchanged rate, annealing is what the run itself did from there on."""
    run = open_run(
        project, {"train": {**CONSTANT, "anneal": {"steps": 0.5, "final_lr_fraction": 1.0}}}
    )
    ensure_cpt(run)
    kept = training_state.saved_steps(Path("runs/tiny/cpt/states"))
    assert len(kept) == 3
    from_step = kept[0]
    folder = ensure_anneal(run, from_step=from_step, steps=kept[1] - from_step)
    assert folder.name == f"cpt-anneal-{from_step}"
    whole = {row["step"]: row["loss"] for row in trained(Path("runs/tiny/cpt"))}
    again = trained(folder)
    assert len(again) == kept[1] - from_step
    assert [row["loss"] for row in again] == [whole[row["step"]] for row in again]
    state = load_file(f"runs/tiny/cpt/states/state-{kept[1]:08d}/parameters.safetensors")
    model = load_file(folder / "model.safetensors")
    assert all(model[name].equal(state[name]) for name in state)


def test_annealing_is_up_to_date_and_continues_after_a_kill_to_the_same_bits(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    changes = {"train": {**CONSTANT, "save_steps": 2, "anneal": {"steps": 5}}}
    run = open_run(project, changes)
    ensure_cpt(run)

    class Killed(training_state.StateWriter):
        def save(self, step: int, *rest: object) -> None:  # type: ignore[override]
            super().save(step, *rest)  # type: ignore[arg-type]
            self.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, "StateWriter", Killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_anneal(run)
    folder = ensure_anneal(run)
    assert "continues in" in capsys.readouterr().out
    assert read_manifest(folder)["results"]["resumed_at_step"] > 0
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_anneal(run) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    folder.rename("cut")
    whole = ensure_anneal(run)
    assert (whole / "model.safetensors").read_bytes() == Path("cut/model.safetensors").read_bytes()
    assert trained(Path("cut"))[-1]["loss"] == trained(whole)[-1]["loss"]


def test_a_run_under_way_can_be_annealed(project: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_run(project, {"train": {**CONSTANT, "anneal": {"steps": 2}}})

    class Killed(training_state.StateWriter):
        def save(self, step: int, *rest: object) -> None:  # type: ignore[override]
            super().save(step, *rest)  # type: ignore[arg-type]
            self.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, "StateWriter", Killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_cpt(run)
    folder = ensure_anneal(run, from_step=4)
    assert [row["step"] for row in trained(folder)] == [5, 6]
    assert not Path("runs/tiny/cpt").exists()


def test_what_cannot_be_annealed_is_said(project: Path):
    run = open_run(project, {"train": {**CONSTANT, "schedule": {"peak_lr": 5e-3}}})
    with pytest.raises(ConfigError, match="cosine has no constant phase"):
        ensure_anneal(run)
    run = open_run(project, {"train": {**CONSTANT, "keep_checkpoints": False}})
    with pytest.raises(ConfigError, match="keep_checkpoints: set it to true"):
        ensure_anneal(run)
    run = open_run(project, {"train": CONSTANT})
    ensure_cpt(run)
    with pytest.raises(CheckpointError, match=r"no state of step 7 .*there are: 20, 24, 28"):
        ensure_anneal(run, from_step=7)


def test_the_average_of_the_last_states(project: Path):
    run = open_run(project, {"train": {**CONSTANT, "use": "average", "average": {"last": 2}}})
    folder = ensure_specialist(run)
    assert folder == Path("runs/tiny/cpt-average")
    steps = training_state.saved_steps(Path("runs/tiny/cpt/states"))[-2:]
    states = [
        load_file(f"runs/tiny/cpt/states/state-{step:08d}/parameters.safetensors") for step in steps
    ]
    model = load_file(folder / "model.safetensors")
    for name, mean in model.items():
        assert mean.equal(0.5 * states[0][name] + 0.5 * states[1][name]), name
    assert (folder / "tokenizer.json").is_file()
    with pytest.raises(CheckpointError, match="holds 3 states, and 9 are wanted"):
        ensure_average(run, last=9)
    # As the decay that `anneal` describes would have counted the four steps between the two.
    average, anneal = {"last": 2, "weights": "anneal"}, {"shape": "linear"}
    run = open_run(
        project, {"train": {**CONSTANT, "use": "average", "average": average, "anneal": anneal}}
    )
    assert read_manifest(ensure_specialist(run))["results"]["weights"] == pytest.approx([0.5, 0.5])


def test_a_use_that_needs_states_says_so():
    from toolkit.train.config import TrainSection

    for use, words in (("anneal", "keep_checkpoints"), ("average", "keep_checkpoints")):
        with pytest.raises(ValueError, match=words):
            TrainSection.model_validate({"use": use})
    with pytest.raises(ValueError, match="takes 4 states; set save_total_limit"):
        TrainSection.model_validate({"use": "average", "keep_checkpoints": True})
    with pytest.raises(ValueError, match=r"forgetting_monitor\.evaluations is 0"):
        TrainSection.model_validate({"use": "best", "forgetting_monitor": {"evaluations": 0}})
