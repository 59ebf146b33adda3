"""The commands beside `cpt run`, as typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.cli import main


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["toolkit", *map(str, words)])
    try:
        main.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in "ab"]
    for folder, value in zip(folders, (1.0, 5.0), strict=True):
        folder.mkdir()
        save_file({"x": torch.tensor([value])}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    return folders


@pytest.mark.parametrize(
    ("flags", "mean"), [([], 3.0), (["--weights", "3,1"], 2.0), (["--decay", "0.25"], 4.2)]
)
def test_folders_are_averaged(monkeypatch, capsys, models, tmp_path: Path, flags, mean: float):
    out = tmp_path / "out"
    code, text = run(monkeypatch, capsys, "checkpoint", "average", *models, out, *flags)
    assert (code, "1 tensors of 2 models averaged" in text) == (0, True), text
    assert load_file(out / "model.safetensors")["x"].item() == pytest.approx(mean)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weights", "1"], "--weights: give 2 numbers"),
        (["--weights", "1,1", "--decay", "0.5"], "give one of them"),
        (["--decay", "0"], "--decay: must be greater than 0"),
        (["--last", "2"], "--last: is for a recipe's states"),
    ],
)
def test_flags_that_cannot_be(monkeypatch, capsys, models, tmp_path: Path, flags, words: str):
    command = ("checkpoint", "average", *models, tmp_path / "out", *flags)
    code, text = run(monkeypatch, capsys, *command)
    assert code == 2
    assert words in text
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_one_folder_alone_is_taken_for_a_recipe(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    code, text = run(monkeypatch, capsys, "checkpoint", "average", "finanz", "--last", "2")
    assert code == 2
    assert "no recipe 'finanz'" in text


@pytest.mark.parametrize("words", [("sft", "run"), ("cpt", "anneal")])
def test_an_unknown_recipe(monkeypatch, capsys, tmp_path: Path, words: tuple[str, str]):
    monkeypatch.chdir(tmp_path)
    code, text = run(monkeypatch, capsys, *words, "finanz")
    assert (code, len(text.strip().splitlines())) == (2, 1), text
