"""A merge stage that was begun on a machine of another kind: nothing is compared across types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.machine import OVERRIDE
from toolkit.pipeline import merge_stage
from toolkit.pipeline.merge_search import SCORES, begun_precision
from toolkit.pipeline.stages import ensure_merge, join_merge

SEARCH = {"num_trials": 5, "sweep": [0.8, 0.4], "merges": ["linear"]}


class StoppedError(Exception):
    pass


def stop_after_search(*_: object, **__: object) -> None:
    raise StoppedError


@pytest.fixture
def begun(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose search was done in bfloat16, and which was stopped before the test."""
    make_project(tmp_path, make_model, dtype=torch.bfloat16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OVERRIDE, "bf16")
    with monkeypatch.context() as patch:
        patch.setattr(merge_stage, "score_test_once", stop_after_search)
        with pytest.raises(StoppedError):
            ensure_merge(open_run(tmp_path, {"search": SEARCH}))
    return tmp_path


def test_the_search_goes_on_in_the_type_that_is_fast_here_and_says_so(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    work = begun / "runs/tiny/merge.partial"
    assert begun_precision(work / SCORES, "tiny") == "bf16"
    monkeypatch.setenv(OVERRIDE, "fp32")
    merged = ensure_merge(open_run(begun, {"search": SEARCH}))
    said = " ".join(capsys.readouterr().out.split())
    assert "begun on a machine of another kind, scoring in bf16; it goes on in fp32" in said
    results = json.loads((merged / "report.json").read_text())
    assert results["precision"] == {"scoring": "fp32", "training": "bf16"}
    assert (merged / f"{SCORES}.bf16").is_file()
    assert not list(merged.glob("*.json.bf16"))
    # What was scored in bfloat16 stands in the common cache too, under its own settings.
    lines = (begun / "runs/scores-cache.jsonl").read_text().splitlines()
    assert len({json.loads(line)["set"] for line in lines}) >= 4  # two sets in two types

    # The stage is complete on any machine: its recipe says auto on both.
    monkeypatch.setenv(OVERRIDE, "bf16")
    assert ensure_merge(open_run(begun, {"search": SEARCH})) == merged
    assert not list(merged.parent.glob("merge.[0-9]"))  # it was not made again


def test_on_the_same_kind_of_machine_nothing_is_scored_again(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    merged = ensure_merge(open_run(begun, {"search": SEARCH}))
    assert "another kind" not in capsys.readouterr().out
    assert json.loads((merged / "report.json").read_text())["precision"]["scoring"] == "bf16"


def test_a_worker_takes_the_arithmetic_of_the_study(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(OVERRIDE, "fp32")
    join_merge(open_run(begun, {"search": SEARCH}), number=0, wait_seconds=1.0)
    assert "'tiny' is done" in capsys.readouterr().out


def test_interrupted_training_goes_on_in_another_type_and_says_so(
    tmp_path: Path,
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from toolkit.checkpoint.training_state import StateWriter
    from toolkit.pipeline.models import ensure_cpt

    make_project(tmp_path, make_model, dtype=torch.bfloat16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OVERRIDE, "bf16")
    save = StateWriter.save

    def save_and_stop(self: StateWriter, step: int, *given: object) -> None:
        save(self, step, *given)
        self.wait()
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(StateWriter, "save", save_and_stop)
        with pytest.raises(StoppedError):
            ensure_cpt(open_run(tmp_path, {}))
    AcceleratorState._reset_state(reset_partial_state=True)  # another process, on another machine
    monkeypatch.setenv(OVERRIDE, "fp32")
    cpt = ensure_cpt(open_run(tmp_path, {}))
    said = capsys.readouterr().out
    assert "as asked" not in said
    assert 'written with another precision: "bf16" -> "fp32": not bit for bit' in said
    assert json.loads((cpt / "manifest.json").read_text())["results"]["precision"] == "fp32"
