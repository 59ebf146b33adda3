"""A tiny recipe with its model and documents, run in this process rather than by the command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import paragraph
from tests.helpers.projects import recipe
from toolkit.pipeline.run import Run
from toolkit.stage import Stage


def make_project(folder: Path, make_model: Callable[..., Path], **model: Any) -> Path:
    """Model, domain documents, general text and conversations in a folder."""
    make_model(folder / "model", **model)
    (folder / "docs").mkdir()
    for number in range(16):
        name = f"{'train' if number < 8 else 'held'}{number}.txt"
        (folder / "docs" / name).write_text(paragraph(number, sentences=20))
    rows = [{"text": f"{number} " + "a cat sat on the mat and slept. " * 6} for number in range(24)]
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"question {number} of the board and the bank?"},
                {"role": "assistant", "content": f"the bank reported net income in {number}."},
            ]
        }
        for number in range(40)
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    return folder


def open_run(folder: Path, changes: Mapping[str, Any]) -> Run:
    """The run of `tiny.yaml`, written anew with changes to the recipe's train section and others.

    The working folder must be `folder`, since the recipe's paths are relative.
    """
    values = recipe(**{key: value for key, value in changes.items() if key != "train"})
    values["train"] = {**values["train"], **changes.get("train", {})}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return Run.open("tiny.yaml", Path("runs"))


def count_finished(monkeypatch: pytest.MonkeyPatch, root: str) -> Counter[str]:
    """How often each stage is made from now on, by its folder below `root`."""
    counts: Counter[str] = Counter()
    finish = Stage.finish

    def count(stage: Stage, results: Mapping[str, Any], **more: Any) -> None:
        counts[stage.folder.relative_to(root).as_posix()] += 1
        finish(stage, results, **more)

    monkeypatch.setattr(Stage, "finish", count)
    return counts
