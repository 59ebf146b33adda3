"""What a run says before it begins: time and memory here, and what would shorten it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_runs import make_project, open_run
from toolkit.machine import ProductSpeeds
from toolkit.stages import outlook

FAST = ProductSpeeds("cpu", {"fp32": 2e11, "bf16": 4e11, "fp16": 3e9})
SLOW = ProductSpeeds("cpu", {"fp32": 2e5, "bf16": 1e5, "fp16": 1e5})


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outlook, "choose_training_precision", lambda _: "fp32")
    return make_project(tmp_path, make_model)


def test_one_line_of_time_and_memory(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outlook, "product_speeds", lambda: FAST)
    (line,) = outlook.describe_outlook(open_run(project, {}), "merge")
    assert line.startswith("tiny: about ")
    assert " until the merge is chosen, " in line
    assert "GB of this machine's memory" in line
    assert "trains in fp32 200 GFLOP/s on the cpu" in line


def test_over_an_hour_it_says_what_would_shorten_it(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outlook, "product_speeds", lambda: SLOW)
    first, second = outlook.describe_outlook(open_run(project, {}), "cpt")
    assert " until the specialist is trained, " in first
    assert "to finish within an hour: about " in second
    assert "training tokens in place of " in second


def test_what_cannot_be_estimated_stops_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail() -> ProductSpeeds:
        raise OSError("no such thing")

    monkeypatch.setattr(outlook, "product_speeds", fail)
    outlook.say_outlook(open_run(project, {}), "cpt")
    assert "tiny: how long it will take here cannot be told (no such thing)" in (
        capsys.readouterr().out
    )


def test_a_finished_run_says_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = open_run(project, {})
    (run.root / "cpt").mkdir(parents=True)
    (run.root / "cpt" / "manifest.json").write_text("{}")
    outlook.say_outlook(run, "cpt")
    assert capsys.readouterr().out == ""
