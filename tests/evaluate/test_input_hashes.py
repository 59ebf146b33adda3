"""Whatever figures depend on is in the keys of a merge stage, and little else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.input_hashes import evaluation_inputs

PLAIN = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "a"}


def write(path: Path, values: Any, end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = values if isinstance(values, str) else yaml.safe_dump(values)
    path.write_text(text + end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Questions, and tasks of every manner of being put together."""
    write(tmp_path / "questions.jsonl", json.dumps({"question": "?"}))
    for name in ("one", "two", "apart"):
        write(tmp_path / f"data/{name}.jsonl", json.dumps({"q": name}))
    data = {"data_files": {"test": str(tmp_path / "data/one.jsonl")}}
    task = {"task": "mine", "dataset_path": "json", "dataset_kwargs": data, "include": "base"}
    code = "process_results: !function code.score\n"
    write(tmp_path / "tasks/mine.yaml", task, code)
    write(tmp_path / "tasks/base", PLAIN)
    write(tmp_path / "tasks/code.py", "from help import x\ndef score(doc, results): return {}\n")
    write(tmp_path / "tasks/help.py", "x = 1\n")
    write(tmp_path / "tasks/other/other.yaml", {**PLAIN, "task": "other", "tag": ["kind"]})
    own = {"task": "own", **PLAIN, "dataset_path": str(tmp_path / "data")}
    write(tmp_path / "tasks/group.yaml", {"group": "all", "task": ["mine", own, {"task": "other"}]})
    write(tmp_path / "tasks/apart.yaml", {**PLAIN, "task": "apart"})
    return tmp_path


def hashes(folder: Path, task: str) -> dict[str, str]:
    values = {
        "multiple_choice": [{"name": "ours", "files": [str(folder / "questions.jsonl")]}],
        "tasks": [{"task": task, "include_path": str(folder / "tasks")}],
    }
    return evaluation_inputs(EvaluateSection.model_validate(values))


OF_MINE = ["tasks/mine.yaml", "tasks/base", "tasks/code.py", "tasks/help.py", "data/one.jsonl"]
OF_ALL = [*OF_MINE, "tasks/group.yaml", "tasks/other/other.yaml", "data/two.jsonl"]


@pytest.mark.parametrize(
    ("task", "files", "others"),
    [
        ("mine", OF_MINE, ["tasks/other/other.yaml", "data/two.jsonl", "tasks/group.yaml"]),
        ("all", OF_ALL, ["tasks/apart.yaml"]),
        ("kind", ["tasks/other/other.yaml"], ["tasks/mine.yaml", "tasks/base"]),
        ("arc_easy", [], ["tasks/mine.yaml"]),  # one of lm-eval's own
    ],
)
def test_files_of_a_task_count_and_others_do_not(
    folder: Path, task: str, files: list[str], others: list[str]
):
    before = hashes(folder, task)
    for name in [*files, *others]:
        path = folder / name
        text = path.read_text()
        path.write_text(text + "\n# edited\n")
        assert (hashes(folder, task) != before) is (name in files), name
        path.write_text(text)
    assert hashes(folder, task) == before


def test_questions_count(folder: Path):
    before = hashes(folder, "mine")
    (folder / "questions.jsonl").write_text("{}")
    after = hashes(folder, "mine")
    assert {name for name in after if after[name] != before[name]} == {
        "evaluate/choices/ours/questions.jsonl"
    }


def test_prompts_count_whoever_asks_them(folder: Path):
    names = {}
    for name in ("retention", "behavior"):
        names[name] = str(folder / f"{name}.jsonl")
        write(Path(names[name]), json.dumps({"prompt": name}))
    values = {name: {"files": [path]} for name, path in names.items()}
    section = EvaluateSection.model_validate(values)
    before = evaluation_inputs(section)
    assert set(before) == {f"prompts/{path}" for path in names.values()}
    for path in names.values():
        write(Path(path), json.dumps({"prompt": "edited"}))
        after = evaluation_inputs(section)
        assert {name for name in after if after[name] != before[name]} == {f"prompts/{path}"}
        before = after


def test_a_folder_that_cannot_be_followed_counts_whole(folder: Path):
    write(folder / "tasks/broken.yaml", "a: [")
    before = hashes(folder, "mine")
    (folder / "tasks/apart.yaml").write_text("task: apart\n")
    assert hashes(folder, "mine") != before


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "target": lambda task: task.update(doc_to_target="other"),
    "choices": lambda task: task.update(doc_to_choice="turned"),
    "prompt": lambda task: task.update(doc_to_text="say {{question}}"),
    "delimiter": lambda task: task.update(target_delimiter=""),
    "option of the metric": lambda task: task["metric_list"][0].update(ignore_case=True),
    "filter": lambda task: task.update(
        filter_list=[{"name": "f", "filter": [{"function": "take_first"}]}]
    ),
    "settings of the generation": lambda task: task.update(
        generation_kwargs={"until": ["."], "max_gen_toks": 2}
    ),
    "nothing": lambda task: task.update(metadata={"version": 2.0}, task_alias="for people"),
    "another metric": lambda task: task["metric_list"].append({"metric": "acc_norm"}),
}


@pytest.mark.parametrize("kind", ["multiple_choice", "generate_until"])
@pytest.mark.parametrize("change", CHANGES)
def test_scores_of_an_edited_task_are_its_own(
    tmp_path: Path, tiny_tokenizer, kind: str, change: str
):
    from toolkit.evaluate.config import TaskSection
    from toolkit.evaluate.tasks import task_sets

    rows = [
        {"question": f"q{n}", "choices": ["a", "b"], "turned": ["b", "a"], "answer": 0, "other": 1}
        for n in range(4)
    ]
    data = tmp_path / "q.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer" if kind == "multiple_choice" else "{{answer}}",
        "metric_list": [{"metric": "acc" if kind == "multiple_choice" else "exact_match"}],
    }
    if kind == "multiple_choice":
        values["doc_to_choice"] = "choices"
    else:
        values["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 2}

    def key() -> tuple[str, str]:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
        section = TaskSection(task="mine", include_path=str(tmp_path))
        (found,) = task_sets(section, tiny_tokenizer, EvaluateSection(), None)
        return found.content_hash, found.settings_hash

    before = key()
    if kind == "generate_until" and change in {"choices", "another metric", "delimiter"}:
        pytest.skip("of multiple choice")
    if kind == "multiple_choice" and change == "settings of the generation":
        pytest.skip("of generation")
    CHANGES[change](values)
    if change == "target" and kind == "generate_until":
        values["doc_to_target"] = "{{other}}"
    is_same = change in {"nothing", "another metric"}
    assert (key() == before) is is_same
