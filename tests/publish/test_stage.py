"""The real command line against a hub: from a recipe to a model that others load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import project
from tests.helpers.hub_server import TOKEN, Fault, Hub, running_hub
from tests.helpers.projects import ROOT, recipe, write

__all__ = ["project"]
REPO = "org/tiny"
WORDS = ("publish", "run", "tiny.yaml", "--repo", REPO)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def run(project: Path, hub: Hub) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run(*words, token=…)`: a call of the command line that is waited for."""
    named = {"path": "model", "name": "org/base", "license": "apache-2.0"}
    write(project, recipe(model=named, search={"merges": ["linear"]}))

    def call(*words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words),
            cwd=project,
            capture_output=True,
            text=True,
            env=environment(hub, project, token),
            check=False,
        )

    return call


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "toolkit", *words]


def environment(hub: Hub, project: Path, token: str | None) -> dict[str, str]:
    values = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AWS_"))}
    values |= {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(project / "hf-home"),
        "PYTHONPATH": str(ROOT),
    }
    return values | ({"HF_TOKEN": token} if token else {})


def generate(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(folder)("The board expects", return_tensors="pt")
    made = model.generate(**tokens, max_new_tokens=12, do_sample=False)
    return [int(number) for number in made[0]]


def visible(hub: Hub) -> set[str]:
    return set(hub.files(REPO)) - {".gitattributes"} if REPO in hub.repositories else set()


def test_from_recipe_to_a_model_that_others_load(
    project: Path, hub: Hub, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
):
    assert run("merge", "choose", "tiny.yaml").returncode == 0
    # Without credentials one line says what is missing, before any work; the bundle can be made.
    first = run(*WORDS, token=None)
    assert first.returncode == 1, first.stdout
    assert first.stdout == ""
    assert first.stderr.strip().startswith("error: there are no credentials for http://127")
    assert len(first.stderr.strip().splitlines()) == 1
    bundle = project / "runs/tiny/publish/safetensors"
    assert not bundle.exists()
    made = run(*WORDS, "--no-upload", token=None)
    assert made.returncode == 0, made.stderr
    assert "passed    weights" in made.stdout
    assert (bundle / "SHA256SUMS").is_file()
    assert not hub.repositories

    # An expired token: one line, and nothing is begun.
    expired = run(*WORDS, token="hf_" + "x" * 34)
    assert expired.returncode == 1
    assert "does not accept the credentials (401)" in expired.stderr
    assert "x" * 34 not in expired.stderr + expired.stdout
    assert "Traceback" not in expired.stderr

    # kill -9 in mid-upload: the weights crawl, nothing is visible.
    hub.bytes_per_second = 20_000
    process = subprocess.Popen(
        command(*WORDS),
        cwd=project,
        env=environment(hub, project, TOKEN),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not hub.sent("PUT /store"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.bytes_per_second = None
    assert visible(hub) == set()

    # The same command finishes, over a cut connection and a tired server.
    hub.faults += [Fault("PUT /store", None), Fault("/commit/", 500), Fault("/tree/", 429)]
    done = run(*WORDS, "--tag", "v1")
    assert done.returncode == 0, done.stderr
    assert "publish: up to date" in done.stdout
    assert f"{hub.address}/{REPO}/commit/" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert visible(hub) == {path.name for path in bundle.iterdir()}
    assert hub.repositories[REPO].private
    assert not any(TOKEN.encode() in data for data in hub.files(REPO).values())

    commits = len(hub.repositories[REPO].log)
    again = run(*WORDS, "--tag", "v1")
    assert "nothing was sent" in again.stdout, again.stderr
    assert len(hub.repositories[REPO].log) == commits

    # Another user, with nothing but the hub.
    script = (
        "from huggingface_hub import snapshot_download\n"
        f"print(snapshot_download({REPO!r}, revision='v1', local_dir='down'))"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(hub, tmp_path, TOKEN),
        check=True,
        capture_output=True,
    )
    assert generate(tmp_path / "down") == generate(project / "runs/tiny/merge")
    verified = run("publish", "verify", REPO, "--parent", "general=model")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "has the same bytes as the published weights" in verified.stdout

    # And to a folder, as the same bundle.
    stored = run(*WORDS, "--to", f"file://{tmp_path}/srv/tiny")
    assert stored.returncode == 0, stored.stderr
    assert {p.name for p in (tmp_path / "srv/tiny").iterdir()} == visible(hub)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--repo", "tiny"), "must be org/name"),
        (("--repo", "a b/c"), "--repo a b/c"),
        (("--repo", REPO, "--format", "gguff"), "did you mean gguf"),
        (("--repo", REPO, "--to", "/dev/null"), "is a file"),
        (("--repo", REPO, "--accept", "x=y"), "there is no check 'x'"),
        (("--repo", REPO, "--to", "file:///x", "--pr"), "belong to the hub"),
        (("--repo", REPO, "--pr", "--tag", "v1"), "--pr only proposes one"),
        (("--repo", REPO, "--accept", "test=a", "--accept", "test=b"), "accepted twice"),
    ],
)
def test_flags_are_checked_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    text: str,
):
    from toolkit.cli import main, publish

    def fail(*_: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(publish, "_material", fail)
    monkeypatch.setattr(sys, "argv", ["toolkit", "publish", "run", "finance", *words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2, words
    shown = capsys.readouterr().err
    assert text in shown
    assert len(shown.strip().splitlines()) == 1
