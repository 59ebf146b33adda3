"""Questions of a recipe's documents: made, read again, struck, and what stops them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import paragraph
from tests.helpers.tiny_runs import make_project, open_run
from tests.helpers.writing_endpoint import Endpoint, serve_endpoint
from toolkit.data.split import stable_unit
from toolkit.errors import DataError, EvaluationError, ToolkitError
from toolkit.evaluate.config import MultipleChoiceSection
from toolkit.evaluate.questions import load_questions
from toolkit.knowledge import options, questions
from toolkit.pipeline.questions import write_questions
from toolkit.stage import read_manifest

CITIES = [
    "Arlo",
    "Berne",
    "Corte",
    "Delft",
    "Essen",
    "Ghent",
    "Hagen",
    "Ivry",
    "Jena",
    "Kiel",
    "Lund",
    "Metz",
]


def text_of(number: int) -> str:
    """Three facts that no other document has."""
    return "\n\n".join(
        [
            f"{number}. Plant report",
            f"The pumps of the plant were sold to the new owner for ${110 + number} million.",
            f"The loan of the plant to the bank was paid back after {20 + number} months.",
            f"All repairs of the plant are done by the staff of {CITIES[number % 10]} Pumps.",
        ]
    )


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, make_model)
    for number, path in enumerate(sorted((tmp_path / "docs").glob("*.txt"))):
        path.write_text(text_of(number))
    monkeypatch.setattr(options, "score_options", read_options)
    return tmp_path


def read_options(asked: Sequence[tuple[str, Sequence[str]]], *_model: Any) -> list[list[float]]:
    """As a model that finds what stands in the prompt, and else has likings of its own."""
    return [
        [(5.0 if option in prompt else 0.0) + stable_unit("liked", option) for option in choices]
        for prompt, choices in asked
    ]


def run_of(project: Path, **section: Any):
    return open_run(project, {"questions": {"num_questions": 30, **section}})


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_enter_evaluate_split_by_document(project: Path, capsys: Any):
    folder = write_questions(run_of(project))
    rows = rows_of(folder / "evaluation.jsonl")
    assert {row["split"] for row in rows} == {"validation", "test"}
    assert {row["split"] for row in rows_of(folder / "training.jsonl")} == {"train"}
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["document"], set()).add(row["split"])
        right = row["choices"][row["answer"]]
        assert right in row["passage"]
        assert len(set(row["choices"])) == 4
        assert "held" in row["document"]
    assert all(len(split) == 1 for split in splits.values())
    section = MultipleChoiceSection(
        name="facts", files=(str(folder / "evaluation.jsonl"),), split_field="split",
        group_field="document",
    )  # fmt: skip
    loaded = load_questions(section)
    assert [one.split for one in loaded] == [row["split"] for row in rows]
    printed = capsys.readouterr().out
    assert "see a gain of" in printed
    assert "split_field: split" in printed
    results = read_manifest(project / "runs/tiny/question-facts")["results"]["sets"]
    assert results["evaluation"]["right_with"] > results["evaluation"]["right_without"]


def test_a_page_shows_every_question_and_harms_nobody(project: Path):
    for path in (project / "docs").glob("*.txt"):
        path.write_text(path.read_text() + "\n\n</script><b>bold</b> & more")
    folder = write_questions(run_of(project))
    page = (folder / "evaluation.html").read_text()
    assert page.count("<article>") == len(rows_of(folder / "evaluation.jsonl"))
    assert page.count("</script>") == 1
    assert "<b>bold" not in page


def test_struck_questions_stay_struck(project: Path, capsys: Any):
    folder = write_questions(run_of(project))
    path = folder / "evaluation.jsonl"
    rows = rows_of(path)
    rows[1]["struck"] = True
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = MultipleChoiceSection(name="facts", files=(str(path),))
    assert len(load_questions(section)) == len(rows) - 1
    write_questions(run_of(project))
    assert [row["struck"] for row in rows_of(path)] == [row["struck"] for row in rows]
    assert "checked" in path.with_suffix(".html").read_text()
    # Other settings, other options: what was struck is struck, and the former file is kept.
    capsys.readouterr()
    write_questions(run_of(project, num_options=3))
    assert [row["id"] for row in rows_of(path) if row["struck"]] == [rows[1]["id"]]
    assert rows_of(path.with_name("evaluation.jsonl.1")) == rows
    assert "read otherwise than before" in capsys.readouterr().out


def test_questions_of_a_set_that_keeps_none_any_more_are_not_asked(project: Path, capsys: Any):
    path = write_questions(run_of(project)) / "training.jsonl"
    assert "<article>" in path.with_suffix(".html").read_text()
    for document in (project / "docs").glob("train*.txt"):
        document.write_text(paragraph(int(document.stem.removeprefix("train")), sentences=20))
    capsys.readouterr()
    write_questions(run_of(project))
    assert "training: keeps no questions any more" in capsys.readouterr().out
    assert "<article>" not in path.with_suffix(".html").read_text()
    with pytest.raises(EvaluationError, match="holds no questions, or all are struck"):
        load_questions(MultipleChoiceSection(name="facts", files=(str(path),)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "evaluation.jsonl:1: "),
        ('{"id": "a"}', "is no question"),
        ('{"id": "a", "question": "q", "struck": "yes"}', "struck must be true or false"),
    ],
)
def test_a_struck_file_that_does_not_fit(project: Path, line: str, message: str):
    (folder := project / "runs/tiny/questions").mkdir(parents=True)
    (folder / "evaluation.jsonl").write_text(line + "\n")
    with pytest.raises(EvaluationError, match=message):
        write_questions(run_of(project))
    assert not (project / "runs/tiny/question-facts").exists()


def test_a_killed_run_goes_on_to_the_same_file(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(questions, "_CHUNK", 4)
    path = write_questions(run_of(project)) / "evaluation.jsonl"
    before = path.read_bytes()
    (project / "runs").rename(project / "runs-before")
    num_calls = 0

    def die_at_third(*arguments: Any, **settings: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise KeyboardInterrupt
        return options.ask_facts(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(questions, "ask_facts", die_at_third)
        with pytest.raises(KeyboardInterrupt):
            write_questions(run_of(project))
        write_questions(run_of(project))
    assert path.read_bytes() == before


def test_a_fact_of_training_text_is_not_asked_as_a_new_one(project: Path):
    shared = "The tower beside the river was sold to a bank of the city for $555 million."
    for path in (project / "docs").glob("*.txt"):
        path.write_text(f"{path.read_text()}\n\n{shared}")
    folder = write_questions(run_of(project))
    assert not any(row["sentence"] == shared for row in rows_of(folder / "evaluation.jsonl"))


def test_documents_without_facts_or_in_another_language(project: Path):
    for path in (project / "docs").glob("*.txt"):
        path.write_text(f"{path.stem}: the sea is wide and the sky is over it, " * 9)
    with pytest.raises(DataError, match="hold no facts"):
        write_questions(run_of(project))
    for path in (project / "docs").glob("*.txt"):
        path.write_text(
            f"Das Werk wurde {path.stem} für 201 Millionen Euro an die Bank verkauft. " * 3
        )
    with pytest.raises(DataError, match="none of the documents is in English"):
        write_questions(run_of(project))


def test_facts_that_the_model_knows_are_left_out(project: Path, monkeypatch: pytest.MonkeyPatch):
    def know(asked: Sequence[tuple[str, Sequence[str]]], *_model: Any) -> list[list[float]]:
        return [[9.0, *[0.0] * (len(choices) - 1)] for _, choices in asked]

    monkeypatch.setattr(options, "score_options", know)
    with pytest.raises(DataError, match=r"none is kept .* known without the document"):
        write_questions(run_of(project))


def test_two_writers_at_once(project: Path, monkeypatch: pytest.MonkeyPatch):
    def write_again(*_arguments: Any) -> None:
        write_questions(run_of(project))

    monkeypatch.setattr("toolkit.pipeline.questions.ensure_facts", write_again)
    with pytest.raises(ToolkitError, match="another process is writing questions"):
        write_questions(run_of(project))


def three_questions(prompt: str) -> str:
    """As a talkative model: one good question, one without wrong answers, one that tells."""
    amount = next(word for word in prompt.split() if word.startswith("$"))
    wrong = ["$5 million", "$6 million", "$7 million", "$8 million"]
    questions_written = [
        {"question": "For how much?", "answer": f"{amount} million", "wrong": wrong},
        {"question": "When was it?", "answer": "Never.", "wrong": ["Always."]},
        {"question": "Were $9 million paid?", "answer": "$9 million", "wrong": wrong},
        "nonsense",
    ]  # fmt: skip
    return f"Sure! Here they are:\n{json.dumps(questions_written)}\nGood luck!"


def test_a_model_s_questions_are_kept_by_the_same_rule(project: Path):
    with serve_endpoint(Endpoint(answer=three_questions)) as endpoint:
        writer = {"endpoint": endpoint.address, "model": "w-1", "license": "mit"}
        folder = write_questions(run_of(project, writer=writer))
        free = [row for row in rows_of(folder / "evaluation.jsonl") if row["kind"] == "free"]
        assert {row["written_by"] for row in free} == {"w-1"}
        assert all("Question: For how much?" in row["question"] for row in free)
        assert len(free) == len({row["document"] for row in free}) > 0
        num_asked = len(endpoint.prompts)
        write_questions(run_of(project, writer={**writer, "timeout_seconds": 5}))
        assert len(endpoint.prompts) == num_asked


def test_what_a_writer_wrote_is_kept_when_it_breaks_off(project: Path):
    with serve_endpoint(Endpoint(answer=three_questions)) as endpoint:
        writer = {
            "endpoint": endpoint.address, "model": "w-1", "license": "mit", "num_retries": 0,
        }  # fmt: skip

        def break_off(prompt: str) -> str:
            endpoint.status = 500 if len(endpoint.prompts) == 3 else 200
            return three_questions(prompt)

        endpoint.answer = break_off
        with pytest.raises(EvaluationError, match="answers 500"):
            write_questions(run_of(project, writer=writer))
        endpoint.prompts.clear()
        endpoint.answer = three_questions
        endpoint.status = 200
        write_questions(run_of(project, writer=writer))
        assert len(endpoint.prompts) == 14  # of 16 passages; two were written before


def test_a_writer_of_nothing_usable(project: Path):
    with serve_endpoint(Endpoint(answer=lambda _prompt: "I cannot do that.")) as endpoint:
        writer = {"endpoint": endpoint.address, "model": "w-1", "license": "mit"}
        with pytest.raises(EvaluationError, match="no question that can be used, but 'I cannot"):
            write_questions(run_of(project, writer=writer))
