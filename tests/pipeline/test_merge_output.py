"""What a merge stage leaves: the page with its answers, and a merge.yaml that names no machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.helpers.merge_candidates import assert_same_bytes
from tests.helpers.outcomes import MERGE_YAML, make_results, make_training, make_values
from toolkit.errors import ToolkitError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import to_yaml
from toolkit.pipeline import merge_output
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.pipeline.merge_output import (
    named,
    read_metrics,
    references,
    write_model,
    write_report,
)
from toolkit.recipe.schema import Recipe
from toolkit.search.candidate_scorer import Bench
from toolkit.search.space import sweep_point
from toolkit.stage import Stage, hash_file, hash_folder

QUESTION = "What is <debt>?"


@pytest.fixture
def folders(two_models: tuple[Path, Path], tmp_path: Path) -> dict[str, Path]:
    """A merge stage at its end: the merged model stands in its folder."""
    general, specialist = two_models
    work = tmp_path / "merge.partial"
    shutil.copytree(specialist, work)
    rows = "".join(json.dumps(row) + "\n" for row in make_training())
    (specialist / "metrics.jsonl").write_text(rows)
    return {"general": general, "specialist": specialist, "work": work}


def write(folders: dict[str, Path]) -> str:
    sources = {role: {"role": role, "files": ["*.txt"]} for role in ("domain", "general")}
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(folders["general"])},
            "data": {"sources": sources},
            "evaluate": {"prompts": [QUESTION]},
        }
    )
    work = folders["work"]
    stage = Stage(work.with_name("merge"), {}, {"data": "ab" * 32}, 0)
    inputs = MergeInputs(
        "tiny", recipe, folders["general"], {"specialist": folders["specialist"]}, Path("data")
    )
    write_report(make_results(), inputs, stage, MERGE_YAML)
    return (work / "report.html").read_text()


def test_the_page_of_a_stage(folders: dict[str, Path], tmp_path: Path):
    page = write(folders)
    work = folders["work"]
    assert json.loads((work / "report.json").read_text()) == make_values()
    answers = json.loads((work / "answers.json").read_text())
    assert len(answers) == 5
    assert answers[-1]["prompt"] == QUESTION
    assert "What is &lt;debt&gt;?" in page
    assert "loss, nats a token" in page
    assert hash_file(work / "model.safetensors") in page
    assert "ab" * 32 in page
    assert str(tmp_path) not in page
    assert page == write(folders)


def test_answers_of_an_interrupted_stage_are_kept(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    write(folders)
    monkeypatch.setattr(merge_output, "answer_rows", None)  # would fail if it were called
    assert "What is &lt;debt&gt;?" in write(folders)


def test_damaged_answers_are_one_line(folders: dict[str, Path]):
    (folders["work"] / "answers.json").write_text('[{"prompt": "Who?"}]')
    with pytest.raises(ToolkitError, match=r"answers\.json: general: is missing; remove the file"):
        write(folders)


def test_a_model_that_cannot_answer_loses_no_search(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    (folders["specialist"] / "tokenizer.json").unlink()
    (folders["specialist"] / "tokenizer_config.json").unlink()
    page = write(folders)
    assert "has no answers side by side" in capsys.readouterr().out
    assert not (folders["work"] / "answers.json").exists()
    assert 'id="answers"' not in page
    assert 'id="front"' in page


def test_no_training_log(tmp_path: Path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_damaged_training_log_is_one_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": "often"}\n')
    with pytest.raises(ToolkitError, match=r"metrics\.jsonl:2: step: .*; run its stage again"):
        read_metrics(path)


LINEAR = {
    "merge_method": "linear",
    "models": [
        {"model": "general", "parameters": {"weight": 0.25}},
        {"model": "specialist", "parameters": {"weight": 0.75}},
    ],
}


def test_within_the_folder_that_the_command_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folders = {"general": Path("models/llama"), "specialist": tmp_path / "runs/x/cpt"}
    wanted = {"general": "./models/llama", "specialist": "./runs/x/cpt"}
    assert references(folders, Path("runs")) == wanted
    assert references(folders, tmp_path / "runs") == wanted


def test_runs_elsewhere_count_from_the_folder_that_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for runs in (tmp_path / "big/runs", Path("../big/runs")):
        folders = {"general": runs / "x/general", "specialist": runs / "x/cpt"}
        wanted = {"general": "./runs/x/general", "specialist": "./runs/x/cpt"}
        assert references(folders, runs) == wanted


def test_of_models_that_stand_elsewhere_only_the_name_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir("/")  # a common beginning that says nothing
    folders = {
        "general": tmp_path / "a/llama",
        "base": tmp_path / "b/llama",
        "specialist": tmp_path / "runs/x/cpt",
    }
    wanted = {"general": "./a/llama", "base": "./b/llama", "specialist": "./runs/x/cpt"}
    assert references(folders, tmp_path / "runs") == wanted
    elsewhere = references({"general": Path("/models/llama")}, tmp_path / "runs")
    assert elsewhere == {"general": "./llama"}


def test_models_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    folders = {"general": Path("/one/llama"), "base": Path("/two/llama")}
    assert references(folders, Path("runs")) == {"general": "./general", "base": "./base"}


def test_a_merge_of_models_elsewhere_is_written_without_their_places(
    two_models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("project", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "project")
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    names = references(folders, Path("runs"))
    config = named(parse_merge_config(LINEAR, where="x"), names, torch.bfloat16)
    write_model(config, {names[n]: folder for n, folder in folders.items()}, tmp_path / "work", 0)
    text = (tmp_path / "work/merge.yaml").read_text()
    assert text == to_yaml(config)
    assert "model: ./base" in text
    assert "out_dtype: bfloat16" in text
    assert (tmp_path / "work/model.safetensors").is_file()
    for path in (tmp_path / "work").glob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_what_a_killed_call_left_of_another_choice_is_not_taken_for_this_one(
    two_models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    first, second = (named(sweep_point(a).config, {}, torch.float32) for a in (0.3, 0.6))
    work, other = tmp_path / "work", tmp_path / "other"
    for folder, config in ((work, second), (other, first)):
        folder.mkdir()
        write_model(config, folders, folder, 0)
    wanted = (work / "model.safetensors").read_bytes()
    (work / "answers.json").write_text("of the second")
    monkeypatch.setattr(merge_output, "run_merge", None)  # would fail if it were called
    write_model(second, folders, work, 0)  # all of it is there
    (work / "model").mkdir()
    for name in ("model.safetensors", "merge.yaml"):  # moved in part
        (work / name).rename(work / "model" / name)
    write_model(second, folders, work, 0)
    assert (work / "model.safetensors").read_bytes() == wanted
    assert (work / "answers.json").is_file()
    monkeypatch.undo()
    (work / "model").mkdir()
    (work / "model.safetensors").rename(work / "model" / "model.safetensors")
    (work / "model-00002-of-00002.safetensors").write_text("of another number of layers")
    write_model(first, folders, work, 0)
    assert hash_folder(work) == hash_folder(other)


def test_a_candidate_is_scored_as_it_will_be_stored(two_models: tuple[Path, Path], tmp_path: Path):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    names = references(folders, Path("runs"))
    loaded = AutoModelForCausalLM.from_pretrained(two_models[0], dtype=torch.bfloat16)
    found = {}
    for rounding in ("nearest", "stochastic"):
        candidate = sweep_point(0.3, rounding).config
        bench = Bench(folders, loaded, seed=7)
        bench.apply(candidate)
        work = tmp_path / rounding
        work.mkdir()
        config = named(candidate, names, torch.bfloat16)
        write_model(config, {names[n]: folder for n, folder in folders.items()}, work, 7)
        found[rounding] = load_file(work / "model.safetensors")
        assert_same_bytes(loaded, found[rounding])
    first, second = found.values()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert "rounding: stochastic" in (tmp_path / "stochastic/merge.yaml").read_text()
    assert "rounding" not in (tmp_path / "nearest/merge.yaml").read_text()
