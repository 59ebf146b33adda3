"""Models, questions and tasks of lm-eval over them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def model(tmp_path: Path, make_model: Callable[..., Path]) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m")).eval()


@pytest.fixture(scope="session")
def question_rows() -> list[dict[str, Any]]:
    """Questions with two to five options of one or several words, some right twice."""
    chance = random.Random(3)  # noqa: S311
    words = ("revenue", "debt", "the board", "a retailer", "reported", "lease costs", "in 2019")

    def some(least: int, most: int) -> str:
        return " ".join(chance.choice(words) for _ in range(chance.randint(least, most)))

    rows = []
    for number in range(40):
        options = list(dict.fromkeys(some(1, 4) for _ in range(chance.randint(3, 6))))
        options = options if len(options) > 1 else [*options, "none"]
        answer = chance.randrange(len(options))
        question = f"{some(3, 20)}?" + (" " if number % 3 == 0 else "")
        rows.append({"question": question, "choices": options, "answer": answer})
    return rows


@pytest.fixture
def question_file(tmp_path: Path, question_rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in question_rows))
    return path


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Write a task of lm-eval over a JSONL file: `write_task(name, data, **settings)`."""

    def write(name: str, data: Path, **settings: Any) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        values = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metadata": {"version": 1.0},
            **settings,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
        return folder

    return write
