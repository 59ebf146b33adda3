"""What a user sees when something is wrong: one clear line, and an exit code."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import main
from toolkit.errors import DataError

ROOT = Path(__file__).parents[2]


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["toolkit", *words])
    monkeypatch.chdir(ROOT)
    try:
        main.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


def test_an_unknown_recipe(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, "cpt", "run", "finanse")
    assert code == 2
    assert "did you mean finance?" in text
    assert "Recipes: " in text
    assert len(text.strip().splitlines()) == 1


def test_all_faults_of_a_recipe(monkeypatch, capsys, tmp_path: Path):
    text = (ROOT / "recipes" / "finance.yaml").read_text()
    path = tmp_path / "bad.yaml"
    path.write_text(
        text.replace("replay_fraction: 0.15", "replay_fraction: 1.5")
        .replace("schedule: {peak_lr:", "schedule: {peak_lrr:", 1)
        .replace("sha256: bcc8", "sha256: xyz8")
    )
    code, shown = run(monkeypatch, capsys, "cpt", "run", str(path))
    assert code == 2
    assert "data.replay_fraction: must be less than 1.0 (got 1.5)" in shown
    assert "train.schedule.peak_lrr: unknown key; did you mean peak_lr?" in shown
    assert "model.artifact.sha256" in shown


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("x: is gone."), 1, "error: x: is gone."),
        (KeyboardInterrupt(), 130, "nothing is half-written. The same command continues a stage"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "the disk is full"),
        (OSError(errno.ENOSPC, "No space", "from", None, "to"), 1, "to: the disk is full"),
        (RuntimeError("Error: No space left on device (os error 28)"), 1, "the disk is full"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error: BaseException, code: int, words: str):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("toolkit.pipeline.run.Run.open", fail)
    got, text = run(monkeypatch, capsys, "cpt", "run", "finance")
    assert got == code
    assert words in text
    assert len(text.strip().splitlines()) == 1


def test_our_own_bugs_show_a_traceback(monkeypatch, capsys):
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("toolkit.pipeline.run.Run.open", fail)
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, capsys, "cpt", "run", "finance")


def test_a_wrong_flag_exits_with_2(monkeypatch, capsys):
    code, _ = run(monkeypatch, capsys, "cpt", "run", "finance", "--rune", "x")
    assert code == 2


def test_help_answers_at_once():
    """Under 0.3 s on a quiet machine (dev/LOG.md); held here is why: nothing slow is imported."""
    script = "import sys, toolkit.cli.main; print(sorted({m.split('.')[0] for m in sys.modules}))"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert time.monotonic() - began < 2.0
    slow = {"torch", "transformers", "pydantic", "numpy", "numba", "datasets"}
    assert not slow & set(eval(done.stdout))  # noqa: S307  (a list that we printed ourselves)


@pytest.mark.parametrize("seed", ["-1", "9" * 30, "4294967296", "x"])
@pytest.mark.parametrize(
    "words",
    [
        ("merge", "run", "m.yml", "out"),
        ("merge", "moe", "m.yml", "out"),
        ("adapter", "extract", "a", "b", "out"),
        ("adapter", "merge", "m.yml", "out"),
        ("generate", "a", "--prompt", "x"),
    ],
)
def test_seeds_that_are_none(monkeypatch, capsys, words: tuple[str, ...], seed: str):
    code, text = run(monkeypatch, capsys, *words, "--seed", seed)
    assert code == 2
    assert "--seed" in text
    assert "Traceback" not in text
