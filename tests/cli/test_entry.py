"""The command as a process: what it loads, and errors in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]


def configuration(folder: Path) -> Path:
    for number, name in enumerate("ab"):
        (folder / name).mkdir()
        save_file({"x.0.w": torch.full((9,), float(number))}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text("{}")
    models = "".join(f"- {{model: {folder / n}, parameters: {{weight: 1}}}}\n" for n in "ab")
    path = folder / "m.yml"
    path.write_text(f"merge_method: linear\nmodels:\n{models}")
    return path


def run(
    *words: object, code: str = "from toolkit.cli.entry import main; main()"
) -> tuple[int, str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_a_merge_by_kernels_loads_what_it_uses(tmp_path: Path):
    config = configuration(tmp_path)
    watched = (
        "import atexit, sys; from toolkit.cli.entry import main\n"
        "atexit.register(lambda: print(sorted({m.split('.')[0] for m in sys.modules})))\n"
        "main()"
    )
    code, text = run("merge", "run", config, tmp_path / "out", code=watched)
    line, *stored, modules = text.splitlines()
    assert code == 0
    assert line == f"linear: 1 tensors written to {tmp_path / 'out'}"
    assert all(said.endswith("of its change") for said in stored)
    assert load_file(tmp_path / "out" / "model.safetensors")["x.0.w"].tolist() == [0.5] * 9
    loaded = set(eval(modules))  # noqa: S307  (a list that we printed ourselves)
    assert "numba" in loaded
    assert not loaded & {"torch", "transformers", "pandas", "mergekit"}


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


def closed(shell: str, *words: object) -> int:
    """The exit code of the command under a shell that closes its streams, as `shell` says."""
    command = " ".join([sys.executable, "-m", "toolkit", *map(str, words)])
    script = shell.replace("COMMAND", command)
    return subprocess.run(["/bin/bash", "-c", script], check=False, cwd=ROOT).returncode


@pytest.mark.parametrize(
    "shell",
    [
        "COMMAND 2>&-",
        "COMMAND >&-",
        "COMMAND <&- >&- 2>&-",
        "COMMAND | true; exit ${PIPESTATUS[0]}",
        "COMMAND 2>&1 | true; exit ${PIPESTATUS[0]}",
        "COMMAND 2> >(true)",
    ],
)
def test_a_merge_that_nobody_listens_to(tmp_path: Path, shell: str):
    config = configuration(tmp_path)
    assert closed(shell, "merge", "run", config, tmp_path / "out") == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["x.0.w"].tolist() == [0.5] * 9


@pytest.mark.parametrize(
    ("shell", "code"), [("COMMAND >/dev/full", 74), ("COMMAND 2>/dev/full", 0)]
)
def test_a_merge_whose_log_is_on_a_full_disk(
    tmp_path: Path, shell: str, code: int, capfd: pytest.CaptureFixture[str]
):
    config = configuration(tmp_path)
    assert closed(shell, "merge", "run", config, tmp_path / "out") == code
    assert load_file(tmp_path / "out" / "model.safetensors")["x.0.w"].tolist() == [0.5] * 9
    lost = "error: standard output could not be written (No space left on device)"
    assert capfd.readouterr().err.startswith(lost if code else "")


def test_an_error_that_nobody_listens_to(tmp_path: Path):
    words = "merge", "run", tmp_path / "gone.yml", tmp_path / "out"
    assert closed("COMMAND 2>&-", *words) == 2
    assert closed("COMMAND >/dev/full 2>&1", *words) == 2
