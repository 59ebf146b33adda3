"""What a run says before it begins: time and memory here, and what would shorten it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import GPT2Config

from tests.conftest import paragraph
from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project, open_run
from toolkit.machine import ProductSpeeds
from toolkit.pipeline.models import ensure_data
from toolkit.pipeline.set_power import say_expected
from toolkit.plan import outlook
from toolkit.plan.model import Located
from toolkit.stage import read_manifest

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


def test_a_model_with_names_of_its_own_is_trained_all_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(outlook, "product_speeds", lambda: FAST)
    (project / "gpt").mkdir()
    GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64).save_pretrained(project / "gpt")
    run = open_run(project, {})
    monkeypatch.setattr(outlook, "locate_model", lambda _: Located.in_folder(project / "gpt"))
    outlook.say_outlook(run, "cpt")
    assert "tiny: about " in capsys.readouterr().out
    # What its config.json does not say at all is no reason to stop either.
    (project / "gpt" / "config.json").write_text('{"model_type": "none of ours"}')
    outlook.say_outlook(run, "cpt")
    assert "cannot be told" in capsys.readouterr().out


def test_of_training_that_was_begun_the_rest_of_all_epochs_is_left(project: Path):
    run = open_run(project, {"train": {**recipe()["train"], "epochs": 4}})
    results = read_manifest(ensure_data(run))["results"]["train"]
    one_epoch = results["domain_tokens"] + results["general_tokens"]
    log = run.root / "cpt.partial" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text(json.dumps({"tokens": one_epoch}) + "\n")
    assert outlook._fraction_left(run.root, run.recipe.train.epochs) == pytest.approx(0.75)


def test_a_finished_run_says_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = open_run(project, {})
    (run.root / "cpt").mkdir(parents=True)
    (run.root / "cpt" / "manifest.json").write_text("{}")
    outlook.say_outlook(run, "cpt")
    assert capsys.readouterr().out == ""
