"""More text from training documents: made, named in the recipe, trained on, kept from the test."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project, open_run
from tests.helpers.writing_endpoint import Endpoint, serve_endpoint
from toolkit.errors import ConfigError, DataError, EvaluationError
from toolkit.knowledge.texts import find_problem
from toolkit.pipeline.models import ensure_data
from toolkit.pipeline.written_texts import write_texts_of
from toolkit.plan.plan import writing_costs
from toolkit.stage import hash_folder, read_manifest

WRITTEN = {"role": "domain", "written_from": "docs", "files": ["runs/tiny/written/texts.jsonl"]}


def text_of(number: int) -> str:
    return "\n\n".join(
        [
            f"{number}. Plant report",
            f"The pumps of plant {number} were sold to the owner for ${110 + number} million.",
            f"The loan of plant {number} to the bank was paid back after {20 + number} months.",
        ]
    )


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, make_model)
    for number, path in enumerate(sorted((tmp_path / "docs").glob("*.txt"))):
        path.write_text(text_of(number))
    return tmp_path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]


def data_of(**written: Any) -> dict[str, Any]:
    values = recipe()["data"]
    values["sources"]["written"] = {**WRITTEN, **written}
    return {"data": values}


def test_texts_of_training_documents_are_trained_on(project: Path, capsys: Any):
    folder = write_texts_of(open_run(project, {}))
    assert "written_from: docs, files: [runs/tiny/written/texts.jsonl]" in capsys.readouterr().out
    rows = rows_of(folder)
    assert rows
    assert all("train" in row["parent"] and row["group"].startswith("train") for row in rows)
    data = ensure_data(open_run(project, data_of()))
    with (data / "documents.csv").open() as file:
        used = [row for row in csv.DictReader(file) if row["id"].startswith("written/")]
    assert {row["split"] for row in used} == {"train"}
    assert {row["group"] for row in used} <= {row["group"] for row in rows}
    # Asked again of the recipe that names them, they are the same: nothing is written of them.
    before = hash_folder(folder, leave_out=("manifest.json",))
    assert write_texts_of(open_run(project, data_of())) == folder
    assert hash_folder(folder, leave_out=("manifest.json",)) == before


def test_a_text_whose_document_tests_is_left_out(project: Path):
    folder = write_texts_of(open_run(project, {}))
    rows = rows_of(folder)
    rows += [{**row, "id": f"docs/held9~{n}", "group": "held9"} for n, row in enumerate(rows)]
    (project / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ensure_data(open_run(project, data_of(files=["texts.jsonl"])))
    assert "held9" not in {
        line.split(",")[2] for line in (data / "documents.csv").read_text().splitlines()
        if line.startswith("written/")
    }  # fmt: skip
    assert "from documents of another split" in (data / "report.md").read_text()


def test_what_stands_in_a_test_document_is_not_written(project: Path):
    """Not even beyond the place where the data stage cuts what it scores."""
    values = recipe()["data"]
    values["evaluation_document_tokens"] = 12
    values["cleaning"]["decontamination_ngram"] = 8
    same = (project / "docs/train3.txt").read_text()
    for path in (project / "docs").glob("held*.txt"):
        path.write_text(path.read_text() + f"\n\nHere {path.stem} is cut. {same}")
    folder = write_texts_of(open_run(project, {"data": values}))
    assert "docs/train3" not in {row["parent"] for row in rows_of(folder)}
    assert read_manifest(folder)["results"]["counts"]["left out, in validation or test"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"written_from": "dox"}, "no source of documents 'dox'"),
        ({"split": {"test": {}}}, "for training alone"),
    ],
)
def test_a_source_that_does_not_fit(project: Path, change: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        open_run(project, data_of(**change))


def test_files_that_nobody_wrote(project: Path):
    (project / "texts.jsonl").write_text('{"id": "x", "group": "g", "text": "one two three four"}')
    with pytest.raises(DataError, match="does not say which document"):
        ensure_data(open_run(project, data_of(files=["texts.jsonl"])))


def test_nothing_to_train_or_to_write(project: Path):
    finished = {"specialist": {"path": "model"}}
    values = {key: value for key, value in recipe().items() if key != "train"}
    run = open_run(project, {})
    assert run.recipe.trains
    object.__setattr__(run, "recipe", type(run.recipe).model_validate({**values, **finished}))
    with pytest.raises(ConfigError, match="no training documents"):
        write_texts_of(run)
    for path in (project / "docs").glob("*.txt"):
        path.write_text(f"{path.stem}: the sea is wide and the sky is over it, " * 9)
    with pytest.raises(DataError, match="hold nothing that patterns find"):
        write_texts_of(open_run(project, {}))


def say_again(prompt: str) -> str:
    """As a model that says the passage again, and makes a figure up where it is asked to ask."""
    passage = prompt.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    return f"In other words: {passage}" if "other words" in prompt else f"{passage} And 4711."


def test_a_model_writes_too_and_invents_no_figures(project: Path):
    with serve_endpoint(Endpoint(answer=say_again)) as endpoint:
        writer = {"endpoint": endpoint.address, "model": "w-1", "license": "mit", "num_passages": 3}
        run = open_run(project, {"writing": {"writer": writer}})
        folder = write_texts_of(run)
        kinds = [row["kind"] for row in rows_of(folder)]
        assert kinds.count("rephrased") == 3
        assert "answers" not in kinds
        counts = read_manifest(folder)["results"]["counts"]
        assert counts["left out, a figure that the passage has not"] == 3
        (cost,) = writing_costs(run.recipe)
        assert "up to 6 answers" in cost
        endpoint.answer = lambda _prompt: "No."
        other = {**writer, "model": "w-2"}
        with pytest.raises(EvaluationError, match="nothing that w-2 writes can be used"):
            write_texts_of(open_run(project, {"writing": {"writer": other}}))


def test_a_figure_is_the_same_however_it_is_written():
    passage = "The mill was sold for $1,200 in 2021."
    assert not find_problem("In 2021 somebody paid $1200 for the mill.", passage)
    assert find_problem("In 2022 somebody paid $1200 for the mill.", passage)
    assert find_problem("Sold.", passage) == "too short or too long"
