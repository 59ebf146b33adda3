"""The end of the merge stage: answers are made once, the page has them, a failure costs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.outcomes import MERGE_YAML, make_results, make_training
from toolkit.pipeline import merge_stage
from toolkit.pipeline.merge_stage import read_metrics, write_report
from toolkit.recipe.schema import Recipe
from toolkit.stage import Stage, hash_file

QUESTION = "What is <debt>?"


@pytest.fixture
def folders(two_models: tuple[Path, Path], tmp_path: Path) -> dict[str, Path]:
    """A merge stage at its end: the merged model stands in its folder."""
    general, specialist = two_models
    work = tmp_path / "merge"
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
    stage = Stage(work, {}, {"data": "ab" * 32}, 0)
    places: dict[str, Any] = {k: folders[k] for k in ("general", "specialist")}
    write_report(make_results(), work, stage=stage, recipe=recipe, merge_yaml=MERGE_YAML, **places)
    return (work / "report.html").read_text()


def test_the_page_of_a_stage(folders: dict[str, Path], tmp_path: Path):
    page = write(folders)
    work = folders["work"]
    assert json.loads((work / "report.json").read_text()) == make_results()
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
    monkeypatch.setattr(merge_stage, "answer_rows", None)  # would fail if it were called
    assert "What is &lt;debt&gt;?" in write(folders)


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
