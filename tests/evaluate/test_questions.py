"""Questions out of files, and what is wrong with some."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.config import SplitName
from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate.config import (
    EvaluateSection,
    MultipleChoiceSection,
    identity_of_evaluation,
)
from toolkit.evaluate.questions import bigbench_questions, load_questions
from toolkit.evaluate.tasks import question_sets
from toolkit.section import parse_section
from toolkit.tokenizer_files import load_tokenizer


def section(path: Path, **more: Any) -> MultipleChoiceSection:
    return MultipleChoiceSection(name="mine", files=(str(path),), **more)


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_answers_as_index_letter_label_and_text(tmp_path: Path):
    rows = [
        {"question": "a", "choices": ["x", "y"], "answer": 1},
        {"question": "b", "choices": ["x", "y"], "answer": "B"},
        {"question": "c", "choices": ["x", "y"], "answer": "y"},
        {"question": "d", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"},
        {"question": "e", "choices": '["x", "y"]', "answer": "1"},
        {"question": "f", "choices": ["x", "y"], "answer": [1]},
        {"question": "g", "choices": ["2", "1"], "answer": "1"},  # the text, not the index
    ]
    found = load_questions(section(write(tmp_path / "q.json", rows)))
    assert [question.answers for question in found] == [(1,)] * 7
    assert found[0].prompt == "a"


def test_bigbench_s_own_prompt():
    task = {
        "task_prefix": "Say T or F.",
        "examples": [{"input": "Water is wet.", "target_scores": {"F": 0, "T": 1}}],
    }
    (plain,) = bigbench_questions("t", "t", {**task, "append_choices_to_input": False})
    assert plain.prompt == "Say T or F.\nQ: Water is wet.\nA: "
    assert (plain.options, plain.answers, plain.delimiter) == (("F", "T"), (1,), "")
    (listed,) = bigbench_questions("t", "t", task)
    assert listed.prompt == ("Say T or F.\nQ: Water is wet.\n  choice: F\n  choice: T\nA: ")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"question": "a", "choices": ["x", "y"]}], "has no answer in 'answer'"),
        ([{"question": "a", "choices": ["x", "y"], "answer": None}], "has no answer"),
        ([{"question": "a", "choices": ["x", "y"], "answer": 2}], "none of its 2 options"),
        ([{"question": "a", "choices": ["x"], "answer": 0}], "two or more options"),
        ([{"question": "a", "answer": 0}], "has no field 'choices'"),
        ([{"qestion": "a", "choices": ["x", "y"], "answer": 0}], "did you mean qestion"),
        ([], "holds no questions"),
        ({"rows": []}, "a list of questions"),
        ({"examples": [{"input": "a", "target": "b"}]}, "cannot be multiple choice"),
        ({"examples": [{"input": "a", "target_scores": {"x": 0, "y": 0}}]}, "scored as right"),
        ({"examples": {"a": 1}}, "`examples` must be a list .got dict"),
        ({"examples": ["a"]}, "example 0: has no `input` that is a text"),
        ({"examples": [{"target_scores": {"x": 0, "y": 1}}]}, "example 0: has no `input`"),
        ({"examples": [{"input": "a", "target_scores": {"x": "0", "y": 1}}]}, "must be numbers"),
        ({"examples": [], "example_output_prefix": None}, "`example_output_prefix` must be a text"),
        ([{"question": "a", "choices": ["x", "y"], "answer": 0, "struck": "maybe"}], "struck must"),
        ([{"question": "a", "choices": {"text": None, "label": None}, "answer": 0}], "two or more"),
    ],
)
def test_bad_files(tmp_path: Path, value: Any, message: str):
    with pytest.raises(EvaluationError, match=message):
        load_questions(section(write(tmp_path / "q.json", value)))


def test_a_question_struck_in_a_table_of_texts_is_left_out(tmp_path: Path):
    path = tmp_path / "q.csv"
    lines = [f'q{n},"[""x"", ""y""]",0,{struck}' for n, struck in enumerate(("true", "False", ""))]
    path.write_text("\n".join(["question,choices,answer,struck", *lines]) + "\n")
    assert [question.prompt for question in load_questions(section(path))] == ["q1", "q2"]


@pytest.mark.parametrize("prompt", ["{question} {", "{question}}", "{}", "{0}", "{question.a}"])
def test_a_prompt_that_is_no_template_is_refused_before_anything_is_read(prompt: str):
    values = {"name": "x", "files": ["a.jsonl"], "prompt": prompt}
    with pytest.raises(ConfigError, match=r"prompt: .*write fields of a row as \{name\}"):
        parse_section(MultipleChoiceSection, values, where="r", what="recipe")


def test_a_format_that_fits_no_value_names_its_row(tmp_path: Path):
    rows = [{"question": "a", "choices": ["x", "y"], "answer": 0}]
    path = write(tmp_path / "q.json", rows)
    assert load_questions(section(path, prompt="{{q}} {question:>3}"))[0].prompt == "{q}   a"
    with pytest.raises(EvaluationError, match="row 0: `prompt` cannot be filled in"):
        load_questions(section(path, prompt="{question:d}"))


def test_a_dataset_that_fails_without_a_word_is_named(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def fail(*_args: Any, **_settings: Any) -> None:
        raise OSError

    monkeypatch.setattr(datasets, "load_dataset", fail)
    hub = {"dataset": "some/questions", "split": "test", "revision": "a" * 40}
    asked = MultipleChoiceSection.model_validate({"name": "x", "hub": hub})
    with pytest.raises(EvaluationError, match=r"some/questions: cannot be read .*OSError"):
        load_questions(asked)


def test_splits_and_limits_are_stable(question_file: Path, tiny_tokenizer):
    def ids(split: SplitName | None, limit: int | None = None) -> set[str]:
        (items,) = question_sets(
            section(question_file, limit=limit), tiny_tokenizer, EvaluateSection(), split
        )
        return set(items.ids)

    every = {question.id for question in load_questions(section(question_file))}
    validation, test = ids("validation"), ids("test")
    assert validation | test == ids(None) == every
    assert not validation & test
    assert ids("validation", 4) < ids("validation", 6) <= validation


def test_one_place_is_asked_for():
    with pytest.raises(ConfigError, match="exactly one of bigbench, files"):
        parse_section(MultipleChoiceSection, {"name": "x"}, where="r", what="recipe")


def test_groups_and_log_loss(model, tmp_path: Path, tiny_tokenizer):
    rows = [
        {
            "question": f"the board {n}?",
            "choices": ["in 2019", "debt"],
            "answer": n % 2,
            "of": n // 2,
        }
        for n in range(6)
    ]
    path = write(tmp_path / "q.json", rows)
    (found,) = question_sets(
        section(path, group_field="of", metric="log_loss"), tiny_tokenizer, EvaluateSection(), None
    )
    assert list(found.groups) == ["0", "0", "1", "1", "2", "2"]
    assert found.unit == "nats per question"
    a, b = found.score(model, [0, 1])
    assert a > 0.0
    assert b > 0.0
    swapped = [{**row, "answer": 1 - row["answer"]} for row in rows]
    (other,) = question_sets(
        section(write(path, swapped), metric="log_loss"), tiny_tokenizer, EvaluateSection(), None
    )
    # two options share the whole probability
    assert math.exp(-a) + math.exp(-other.score(model, [0])[0]) == pytest.approx(1.0)


def test_a_struck_row_is_left_out_and_a_split_is_kept_to(
    tmp_path: Path, make_model: Callable[..., Path]
):
    rows = [
        {"question": f"q{n}", "choices": ["x", "y"], "answer": 0, "split": split, "struck": struck}
        for n, (split, struck) in enumerate(
            [("test", False), ("validation", False), ("test", True), ("test", False)]
        )
    ]
    path = write(tmp_path / "q.json", rows)
    tokenizer = load_tokenizer(make_model(tmp_path / "model"))
    halves = [
        question_sets(section(path, split_field="split"), tokenizer, EvaluateSection(), split)[0]
        for split in ("validation", "test")
    ]
    assert [len(one) for one in halves] == [1, 2]
    rows[0]["split"] = "train"
    write(path, rows)
    with pytest.raises(EvaluationError, match="split must be validation or test"):
        load_questions(section(path, split_field="split"))
    write(path, [{**row, "struck": True} for row in rows])
    with pytest.raises(EvaluationError, match="or all are struck"):
        load_questions(section(path))


def test_a_key_that_is_not_given_changes_no_identity():
    values = {"multiple_choice": [{"name": "a", "files": ["a.jsonl"]}]}
    (choices,) = identity_of_evaluation(EvaluateSection.model_validate(values))["multiple_choice"]  # type: ignore[misc, attr-defined]
    assert "split_field" not in choices
