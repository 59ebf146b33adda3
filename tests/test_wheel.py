"""The wheel, installed into an environment of its own and used in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import paragraph
from tests.helpers.paged_files import make_pdf

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
    """The `toolkit` command of an environment that holds the wheel, and what it asks for by itself:
    of this environment's libraries those that no extra brings."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    install += ["install", "-q", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for place in places_of(default_libraries(wheel)):
        if not (packages / place.name).exists():
            (packages / place.name).symlink_to(place)
    return folder / "bin" / "toolkit"


def default_libraries(wheel: Path) -> list[Distribution]:
    """What `pip install` of the wheel brings, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    there = {canonicalize_name(d.metadata["Name"]): d for d in distributions() if d.metadata}
    wanted = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    seen: dict[tuple[str, frozenset[str]], Distribution] = {}
    while wanted:
        one = wanted.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen or key[0] not in there:  # CUDA's packages are not in a build without it
            continue
        seen[key] = there[key[0]]
        for text in seen[key].requires or ():
            further = Requirement(text)
            extras = ("", *one.extras)
            if further.marker is None or any(
                further.marker.evaluate({"extra": extra}) for extra in extras
            ):
                wanted.append(further)
    return list({key[0]: found for key, found in seen.items()}.values())


def places_of(libraries: list[Distribution]) -> set[Path]:
    """Their files and folders in this environment's packages."""
    root = Path(sysconfig.get_paths()["purelib"])
    names = {file.parts[0] for one in libraries for file in one.files or ()}
    return {root / name for name in names if name not in {"..", "__pycache__"}}


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
    # Kernels serve it, so nothing of torch is needed, to be imported or to compute.
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['merge', 'run', 'mine.yaml', "
        "'again']; from toolkit.cli.main import main; main()"
    )
    python = str(installed.with_name("python"))
    alone = subprocess.run(
        [python, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    files = (folder / name / "model.safetensors" for name in ("out", "again"))
    assert len({path.read_bytes() for path in files}) == 1


@pytest.fixture
def brought(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    """What somebody brings to an empty folder: a model, letters and general text."""
    folder = tmp_path / "brought"
    make_model(folder / "model")
    for number in range(60):
        path = folder / "letters" / f"client-{number // 3:02d}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(paragraph(number, 12))
    rows = [{"text": paragraph(5000 + n, 12)} for n in range(40)]
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_from_init_to_a_chosen_merge_in_an_empty_folder(installed: Path, brought: Path):
    words = ("--model", "model", "--documents", "letters", "--general", "web.jsonl")
    for command in (("init", "mine", *words), ("plan", "mine"), ("merge", "choose", "mine")):
        done = run(installed, brought, *command)
        assert done.returncode == 0, (command, done.stderr)
    assert (brought / "runs" / "mine" / "merge" / "model.safetensors").is_file()
    copied = run(installed, brought, "init", "copy", "--from", "finance")
    assert copied.returncode == 0, copied.stderr
    assert "SmolLM2-135M-Instruct" in (brought / "recipes" / "copy.yaml").read_text()


@pytest.mark.real
def test_the_shipped_recipe_is_planned_and_its_documents_are_read(installed: Path, tmp_path: Path):
    planned = run(installed, tmp_path, "plan", "finance", "--no-measure")
    assert planned.returncode == 0, planned.stderr
    assert "filings" in planned.stdout
    made = run(installed, tmp_path, "data", "run", "finance")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "runs" / "finance" / "data" / "manifest.json").is_file()


def test_what_is_not_installed_is_named_by_its_extra(installed: Path, brought: Path):
    scored = run(installed, brought, "eval", "model", "--tasks", "arc_easy")
    assert scored.returncode == 2
    assert "pip install 'cpt-toolkit[tasks]'" in scored.stderr
    (brought / "pdfs").mkdir()
    (brought / "pdfs" / "a.pdf").write_bytes(make_pdf([["Net sales rose."]]))
    written = run(installed, brought, "init", "x", "--model", "model", "--documents", "pdfs")
    assert written.returncode == 2
    assert "pip install 'cpt-toolkit[documents]'" in written.stderr
    assert run(installed, brought, "init", "mine", "--model", "model", "--documents", "letters",
               "--general", "web.jsonl").returncode == 0  # fmt: skip
    path = brought / "recipes" / "mine.yaml"
    values = yaml.safe_load(path.read_text())
    values.setdefault("evaluate", {})["tasks"] = [{"task": "arc_easy"}]
    path.write_text(yaml.safe_dump(values))
    refused = run(installed, brought, "merge", "choose", "mine")  # before anything is trained
    assert refused.returncode == 2
    assert "evaluate.tasks: " in refused.stderr
    assert "pip install 'cpt-toolkit[tasks]'" in refused.stderr
    assert not (brought / "runs").exists()
    merge = {
        "merge_method": "linear",
        "models": [{"model": "model", "parameters": {"weight": 1.0}}],
        "chat_template": "chatml",
    }
    (brought / "merge.yaml").write_text(yaml.safe_dump(merge))
    merged = run(installed, brought, "merge", "run", "merge.yaml", "out")
    assert merged.returncode == 2
    assert "pip install 'cpt-toolkit[mergekit]'" in merged.stderr
