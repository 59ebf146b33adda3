"""The wheel, installed into an environment of its own and used in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MOST_BYTES = 2_000_000
GIT = shutil.which("git") or "git"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of the build is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        [
            *(GIT, "ls-files", "-co", "--exclude-standard", "toolkit", "recipes", "merges"),
            *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
        ],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "-w", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `toolkit` command of an environment that holds the wheel, and this one's libraries."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    # Its own packages come before these; an editable installation here is not followed from a path.
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    install += ["install", "-q", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "toolkit"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [str(installed), *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_it_holds_what_is_needed_and_is_small(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("recipes", "merges"):
        for path in (ROOT / kind).rglob("*.*"):
            assert f"toolkit/packaged/{path.relative_to(ROOT).as_posix()}" in names
    assert {"toolkit/py.typed", "toolkit/report/style.css", "toolkit/report/script.js"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "dev/", "build/")) for name in names)
    assert wheel.stat().st_size < MOST_BYTES


def test_recipes_and_merges_are_found_in_an_empty_folder(installed: Path, tmp_path: Path):
    code = (
        "import toolkit; from toolkit.shipped import shipped_folder; print(toolkit.__file__); "
        "print(toolkit.load_recipe(shipped_folder('recipes') / 'finance.yaml').search.merges)"
    )
    python = installed.with_name("python")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(installed.parent.parent) in done.stdout
    assert "'linear', 'slerp', 'ties'" in done.stdout
    asked = run(installed, tmp_path, "power", "finanz")
    assert asked.returncode == 2
    assert "did you mean finance" in asked.stderr
    assert not list(tmp_path.iterdir())


def test_models_are_merged_in_an_empty_folder(
    installed: Path, tmp_path: Path, two_models: tuple[Path, Path]
):
    general, specialist = two_models
    folder = tmp_path / "empty"
    folder.mkdir()
    config = {
        "merge_method": "linear",
        "models": [
            {"model": str(general), "parameters": {"weight": 0.5}},
            {"model": str(specialist), "parameters": {"weight": 0.5}},
        ],
        "dtype": "float32",
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run(installed, folder, "merge", "run", "mine.yaml", "out")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "model.safetensors").is_file()
