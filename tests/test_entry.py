"""The short way to a merge: the same errors and files as by the long one, with less loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parent.parent


def configuration(folder: Path) -> Path:
    for number, name in enumerate("ab"):
        (folder / name).mkdir()
        save_file({"x.0.w": torch.full((9,), float(number))}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text("{}")
    models = "".join(f"- {{model: {folder / n}, parameters: {{weight: 1}}}}\n" for n in "ab")
    path = folder / "m.yml"
    path.write_text(f"merge_method: linear\nmodels:\n{models}")
    return path


def run(*words: object, code: str = "from toolkit.entry import main; main()") -> tuple[int, str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_the_short_and_the_long_way_write_the_same(tmp_path: Path):
    config = configuration(tmp_path)
    assert run("merge", "run", config, tmp_path / "short") == (
        0,
        f"linear: 1 tensors written to {tmp_path / 'short'}\n",
    )
    assert run("merge", "run", config, tmp_path / "long", "--seed", 0)[0] == 0
    short, long = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in
                   ("short", "long"))  # fmt: skip
    assert short == long
    assert load_file(tmp_path / "short" / "model.safetensors")["x.0.w"].tolist() == [0.5] * 9


def test_what_the_short_way_does_not_load(tmp_path: Path):
    config = configuration(tmp_path)
    run("merge", "run", config, tmp_path / "first")  # compiles the kernel where it never was
    watched = (
        "import os, sys; from toolkit.entry import main\n"
        "os._exit = lambda code: print(sorted({m.split('.')[0] for m in sys.modules}))\n"
        "main()"
    )
    code, text = run("merge", "run", config, tmp_path / "out", code=watched)
    loaded = set(eval(text.splitlines()[-1]))  # noqa: S307  (a list that we printed ourselves)
    assert code == 0
    assert "numpy" in loaded
    assert not loaded & {"typer", "rich", "click", "pydantic", "llvmlite", "numba", "torch"}


@pytest.mark.parametrize("words", [("gone.yml", "out"), ("", "out")])
def test_errors_are_one_line(tmp_path: Path, words: tuple[str, str]):
    code, text = run("merge", "run", tmp_path / words[0], tmp_path / words[1])
    assert code == 2
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1


def test_a_taken_folder(tmp_path: Path):
    config = configuration(tmp_path)
    assert run("merge", "run", config, tmp_path / "a")[1].startswith(f"error: {tmp_path / 'a'}: ")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
