"""How merge.yaml speaks of models: nothing of this machine enters, and it can be followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import to_yaml
from toolkit.pipeline.merge_stage import named, references, write_model

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
