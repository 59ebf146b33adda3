"""The real command line, from a recipe to a merged model, on a tiny model and local documents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.projects import ROOT, recipe, toolkit, write


def metrics(project: Path) -> list[float]:
    return read_losses(project / "runs/tiny/cpt/metrics.jsonl")


def read_losses(path: Path) -> list[float]:
    rows = map(json.loads, path.read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_from_recipe_to_merged_model(project: Path):
    first = toolkit(project, "merge", "choose", "tiny.yaml")
    assert first.returncode == 0, first.stderr
    assert "chosen merge" in first.stdout
    assert "Kept" in first.stdout
    merged = project / "runs/tiny/merge"
    results = json.loads((merged / "report.json").read_text())
    assert {c["name"] for c in results["candidates"]} >= {"general", "specialist"}
    assert len(results["candidates"]) <= 24  # equal merges count once
    assert {c["status"] for c in results["candidates"]} <= {"complete", "dropped"}
    specialist = results["models"]["specialist"]["domain_change"]
    assert specialist["high"] < 0.0  # it did learn the domain

    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template
    for folder in ("runs/tiny/cpt", "runs/tiny/merge"):
        AutoModelForCausalLM.from_pretrained(project / folder)
    page = (merged / "report.html").read_text()
    assert str(project) not in page + (merged / "manifest.json").read_text()
    assert not list((project / "runs/tiny").glob("*.partial"))

    # merge.yaml is mergekit's dialect: mergekit makes the same model of it.
    command = [str(Path(sys.executable).parent / "mergekit-yaml")]
    subprocess.run(
        [*command, "runs/tiny/merge/merge.yaml", "theirs", "--quiet"],
        cwd=project,
        check=True,
        capture_output=True,
    )
    ours, theirs = (
        load_file(next((project / folder).glob("*.safetensors")))
        for folder in ("runs/tiny/merge", "theirs")
    )
    assert set(ours) == set(theirs)
    for name in ours:
        assert abs(ours[name].double() - theirs[name].double()).max() < 1e-6

    # A second call does nothing and says so; the same recipe anew gives the same bits.
    again = toolkit(project, "merge", "choose", "tiny.yaml")
    assert again.stdout.count("up to date") == 3, again.stdout
    write(project, recipe(train={"schedule": {"peak_lr": 4e-3}, "save_steps": 2}))
    changed = toolkit(project, "cpt", "run", "tiny.yaml")
    assert "train.schedule.peak_lr: 0.005 -> 0.004" in changed.stdout
    assert (project / "runs/tiny/cpt.1/model.safetensors").is_file()
    write(project, recipe())
    assert toolkit(project, "cpt", "run", "tiny.yaml").returncode == 0
    a, b = (
        (project / f"runs/tiny/{folder}/model.safetensors").read_bytes()
        for folder in ("cpt", "cpt.1")
    )
    assert a == b
    assert metrics(project) == read_losses(project / "runs/tiny/cpt.1/metrics.jsonl")


def test_when_nothing_qualifies_the_general_model_is_kept(project: Path):
    # A learning rate that changes nothing: no merge can gain.
    nothing = {"schedule": {"peak_lr": 1e-30}, "optimizer": {"weight_decay": 0.0}}
    write(project, recipe(train=nothing, search={"merges": ["slerp"]}))
    done = toolkit(project, "merge", "choose", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "The general model is kept" in done.stdout
    assert "no domain gain to keep" in done.stdout
    results = json.loads((project / "runs/tiny/merge/report.json").read_text())
    assert results["chosen"] == "general"
    assert not results["any_merge"]
    merged = load_file(project / "runs/tiny/merge/model.safetensors")
    general = load_file(project / "model/model.safetensors")
    assert all((merged[name] == general[name]).all() for name in merged)


def test_without_general_text_the_models_own_answers_decide(project: Path):
    values = recipe()
    del values["data"]["sources"]["web"]
    values["data"]["replay_fraction"] = 0
    values["evaluate"]["retention"] = {"num_prompts": 8, "loss_tolerance": 9.0}
    values["search"] = {"num_trials": 10}
    write(project, values)
    done = toolkit(project, "merge", "choose", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    results = json.loads((project / "runs/tiny/merge/report.json").read_text())
    assert [row["name"] for row in results["sets"] if row["role"] == "general"] == ["retention"]
    assert (project / "runs/tiny/merge/report.html").is_file()
    assert {"domain_bits_per_byte"} == {
        key
        for line in (project / "runs/tiny/cpt/metrics.jsonl").read_text().splitlines()
        for key in json.loads(line)
        if key.endswith("bits_per_byte")
    }
    planned = toolkit(project, "plan", "tiny.yaml", "--no-measure")
    assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize("stage", ["cpt", "merge"])
def test_a_killed_stage_continues(project: Path, stage: str):
    """kill -9 as soon as the stage has begun; the next call finishes to the same bits."""
    write(project, recipe(train={"epochs": 6, "save_steps": 2}))
    words = ["cpt", "run"] if stage == "cpt" else ["merge", "choose"]
    if stage == "merge":
        assert toolkit(project, "cpt", "run", "tiny.yaml").returncode == 0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *words, "tiny.yaml"],
        cwd=project,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    partial = project / f"runs/tiny/{stage}.partial"
    sign = "state-*" if stage == "cpt" else "scores.jsonl"
    deadline = time.monotonic() + 120
    while not any(p.is_dir() or p.stat().st_size for p in partial.glob(sign)):
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (project / f"runs/tiny/{stage}/manifest.json").exists()

    done = toolkit(project, *words, "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "continues in" in done.stdout
    if stage == "cpt":
        (project / "runs/tiny/cpt").rename(project / "resumed")
        assert toolkit(project, "cpt", "run", "tiny.yaml").returncode == 0
        fresh = (project / "runs/tiny/cpt/model.safetensors").read_bytes()
        assert (project / "resumed/model.safetensors").read_bytes() == fresh
