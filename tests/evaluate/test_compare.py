"""`toolkit eval` on two models and a task of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate.compare import (
    _labels,
    _task_section,
    figures_of,
    run_evaluation,
    show_figures,
)
from toolkit.evaluate.sets import EvaluationSet
from toolkit.statistics.hypothesis import mcnemar

ROOT = Path(__file__).parents[2]


def test_two_models_through_the_command_line(
    tmp_path: Path,
    two_models: tuple[Path, Path],
    question_file: Path,
    write_task: Callable[..., Path],
):
    folder = write_task(
        "mine",
        question_file,
        output_type="multiple_choice",
        doc_to_text="question",
        doc_to_choice="choices",
        doc_to_target="answer",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "toolkit", "eval", *map(str, two_models), "--tasks", "mine"]
    command += ["--include-path", str(folder), "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_CACHE": str(tmp_path / "cache")}
    env["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert list(results["tasks"]) == ["mine acc", "mine acc_norm"]
    acc = results["tasks"]["mine acc"]
    assert acc["higher_is_better"]
    losses = results["items"]["mine acc"]["losses"]
    for label, values in losses.items():
        interval = acc["models"][label]
        assert interval["estimate"] == pytest.approx(1.0 - sum(values) / 40)
        assert interval["low"] < interval["estimate"] < interval["high"]
    (pair,) = acc["pairs"]
    base, tuned = ([value == 0.0 for value in losses[name]] for name in ("base", "tuned"))
    assert pair["p"] == pytest.approx(mcnemar(tuned, base))
    assert "mine acc: acc, higher is better, 40 items" in done.stdout


def test_models_of_two_types_are_scored_in_one(
    two_models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from torch import bfloat16, float32
    from transformers import LlamaForCausalLM

    from toolkit.evaluate import compare

    folders = {"low": tmp_path / "low", "full": tmp_path / "full"}
    for folder, dtype in zip(folders.values(), (bfloat16, float32), strict=True):
        LlamaForCausalLM.from_pretrained(two_models[0], dtype=dtype).save_pretrained(folder)
    precisions: list[str] = []
    monkeypatch.setattr(
        compare, "_score", lambda *given: precisions.append(given[-1].precision) or []
    )
    compare._score_models(folders, [], [])
    assert precisions == ["fp32", "fp32"]


def test_pairs_are_paired():
    # Each item is 0.5 better, whatever its own level: the difference is known exactly.
    items = EvaluationSet(
        "x", "watch", "bits per byte", "abcd", "abcd", [1.0] * 4, [1] * 4, "", lambda *_: []
    )
    found = figures_of(items, {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.5, 1.5, 2.5, 3.5]})
    (pair,) = found["pairs"]
    assert pair["difference"] == pytest.approx({"estimate": -0.5, "low": -0.5, "high": -0.5})
    assert pair["p"] == 0.125  # two of sixteen sign patterns
    assert not found["higher_is_better"]


def test_equal_scores_of_degree_are_not_taken_for_wrong_answers():
    count = 20
    items = EvaluationSet(
        "x", "watch", "1 - f1", list(map(str, range(count))), list(map(str, range(count))),
        [1.0] * count, [1] * count, "", lambda *_: [],
    )  # fmt: skip
    scores = [0.25, 0.5] * 10
    (pair,) = figures_of(items, {"a": scores, "b": scores})["pairs"]
    assert pair["difference"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}


def test_what_is_not_known_is_no_number_in_json():
    # A single group: how another one would score is not known.
    items = EvaluationSet(
        "x", "watch", "bits per byte", "ab", "gg", [1.0] * 2, [1] * 2, "", lambda *_: []
    )
    found = figures_of(items, {"a": [1.0, 2.0]})
    assert found["models"]["a"] == {"estimate": 1.5, "low": None, "high": None}
    show_figures({"x": found})


def test_an_interval_and_its_test_say_the_same():
    names = [str(number) for number in range(7)]
    items = EvaluationSet(
        "x", "watch", "error", names, names, [1.0] * 7, [1] * 7, "", lambda *_: []
    )
    (pair,) = figures_of(items, {"a": [1.0] * 6 + [0.0], "b": [0.0] * 7})["pairs"]
    assert pair["p"] < 0.05
    assert pair["difference"]["low"] is not None
    assert pair["difference"]["low"] > 0.0


def test_one_task_in_two_ways_is_refused_before_a_model_is_loaded(
    two_models: tuple[Path, Path],
    question_file: Path,
    write_task: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
):
    settings = {"output_type": "multiple_choice", "doc_to_text": "question",
                "doc_to_choice": "choices", "doc_to_target": "answer",
                "fewshot_split": "test"}  # fmt: skip
    folder = write_task("mine", question_file, **settings)
    monkeypatch.setattr("toolkit.evaluate.compare.load_causal_model", None)
    with pytest.raises(
        EvaluationError, match=r"toolkit eval: two sets are called 'mine.*two comma"
    ):
        run_evaluation(two_models, tasks=["mine", "mine+1"], include_path=folder, limit=3)


def test_what_to_score_must_be_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="x is named twice"):
        _labels([tmp_path / "y", Path("x"), Path("x")])
    with pytest.raises(ConfigError, match=r"--tasks x\+9999.* is not a valid task"):
        _task_section("x+99999999999999", None, None)
    with pytest.raises(ConfigError, match="is not a valid task"):
        _task_section("x+" + "9" * 5000, None, None)
    assert _task_section("x+5", None, 3).num_fewshot == 5
    with pytest.raises(ConfigError, match="--tasks"):
        run_evaluation([tmp_path])
    with pytest.raises(ConfigError, match="named twice"):
        run_evaluation([tmp_path, tmp_path], tasks=["x"])
    with pytest.raises(ConfigError, match="number of examples"):
        run_evaluation([], tasks=["x+many"])
