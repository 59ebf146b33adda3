"""What a run says before it begins: time and memory here, and what would shorten it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import paragraph
from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project, open_run
from toolkit.machine import ProductSpeeds
from toolkit.pipeline.models import ensure_data
from toolkit.pipeline.set_power import say_expected
from toolkit.plan import outlook

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


def test_before_it_trains_it_says_what_its_sets_can_see_and_speak_for(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    values = recipe()
    rows = [{"text": f"{n} " + paragraph(n), "owner": "one" if n % 2 else n} for n in range(48)]
    (project / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values["data"]["sources"]["web"] |= {
        "group_field": "owner",
        "split": {
            "train": {"groups": ["[0-9]*"]},
            "validation": {"groups": ["one"]},
            "test": {"groups": ["[0-9]*"]},
        },
    }
    run = open_run(project, {"data": values["data"]})
    data, general = ensure_data(run), project / "model"
    capsys.readouterr()
    say_expected(run, data, general, is_trained=True)
    assert capsys.readouterr().out == ""
    say_expected(run, data, general, is_trained=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "what a set sees" in told
    assert "retention (general): 96 items in 80 groups see a loss of" in told
    assert "docs (domain): " in told
    assert "web (general): 24 items see a loss of" in told
    assert "web: its 24 items come from one group (one)" in told
    assert "docs: its" not in told  # a document each: nothing more is claimed than one can see


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
