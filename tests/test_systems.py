"""Recipes of published systems at their laptop scale, with a tiny model and tiny texts in place of
the embedded ones: stages, shares, schedules, positions and files are the recipe's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import paragraph
from tests.helpers.small_recipes import COMPARISONS
from toolkit.data.blocks import Blocks
from toolkit.data.config import DataSection
from toolkit.load_yaml import load_yaml
from toolkit.pipeline.models import ensure_data, ensure_general, ensure_specialist
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_sft
from toolkit.recipe.layers import kept_of
from toolkit.recipe.load import load_recipe
from toolkit.train.schedule import rate_in_stages
from toolkit.train.steps import plan_steps

RECIPES = Path(__file__).parent.parent / "recipes"
SYSTEMS = sorted(
    path
    for path in RECIPES.glob("*.yaml")
    if "laptop" in (load_yaml(path).get("scales") or {}) and path.stem not in COMPARISONS
)
"""Comparisons are run by the tests of studies."""

TOKENS = 2500
LONGEST = 128


def texts(folder: Path, name: str, seed: int) -> list[str]:
    """Files of a source: lines of their own, enough for every split."""
    (folder / name).mkdir()
    for number in range(16):
        lines = paragraph(seed * 100 + number, sentences=24).replace(". ", f" of {name}.\n")
        (folder / name / f"{number}.txt").write_text(lines)
    return [f"{name}/*.txt"]


def talks(folder: Path, name: str) -> list[str]:
    rows = [
        {
            "id": str(number),
            "messages": [
                {"role": "user", "content": f"question {number} of the board and the bank?"},
                {"role": "assistant", "content": f"the bank reported net income in {number}."},
            ],
        }
        for number in range(40)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"{name}.jsonl"]


def tiny_data(folder: Path, data: dict[str, Any], section: DataSection, prefix: str) -> None:
    """Local documents in place of a section's sources; what a scale must keep is kept."""
    shares = {
        "train": {"fraction": 0.6},
        "validation": {"fraction": 0.2},
        "test": {"fraction": 0.2},
    }
    for seed, (name, given) in enumerate(section.sources.items()):
        source: dict[str, Any] = {"role": given.role, "weight": given.weight, "fim": given.fim}
        if given.messages_field is not None:
            source |= {"files": talks(folder, prefix + name), "messages_field": "messages"}
        else:
            source["files"] = texts(folder, prefix + name, seed)
        data["sources"][name] = {**source, "split": shares}
    data["end_of_document"] = "<|end|>"
    data["max_repeats"] = 50.0
    data["cleaning"] = {
        "collapse_spaces": False,
        "min_words": 1,
        "max_repeated_line_fraction": 1.0,
        "max_repeated_ngram_fraction": 1.0,
        "near_duplicate_similarity": None,
        "decontamination_ngram": None,
    }


@pytest.fixture
def tiny(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """Write a recipe whose laptop scale is made tiny, and open its run there."""
    monkeypatch.chdir(tmp_path)

    def write(path: Path) -> Run:
        values = load_yaml(path)
        laptop = json.loads(json.dumps(values["scales"]["laptop"]))  # without YAML's anchors
        full, scaled = load_recipe(path).data, load_recipe(path, ["laptop"])
        longest = max([full.sequence_length, *(s.sequence_length or 0 for s in full.stages)])
        laptop |= {"tokens": TOKENS, "sequence_divisor": longest // LONGEST}
        if "moe" in laptop["model"]:  # the experts are made anew, of the tiny model
            laptop["model"]["moe"]["base"] = {"path": "model"}
        else:
            laptop["model"] = {"path": "model"}
        for name in laptop.get("models", {}):
            laptop["models"][name] = {"path": "model"}
        tiny_data(tmp_path, laptop["data"], scaled.data, "")
        laptop["train"]["schedule"]["peak_lr"] = 5e-3
        laptop["train"]["forgetting_monitor"] = {"evaluations": 1, "tokens_per_role": 200}
        laptop.setdefault("evaluate", {})["window_tokens"] = 64
        if scaled.sft is not None:
            tiny_data(tmp_path, laptop["sft"]["data"], scaled.sft.data, "sft-")
            laptop["sft"]["data"]["sequence_length"] = 64 * laptop["sequence_divisor"]
            laptop["sft"].setdefault("train", {})["forgetting_monitor"] = {
                "evaluations": 1,
                "tokens_per_role": 200,
            }
        values["scales"]["laptop"] = laptop
        (tmp_path / path.name).write_text(yaml.safe_dump(values))
        make_model(tmp_path / "model")
        return Run.open(f"{path.name}@laptop", Path("runs"))

    return write


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_a_system_runs_at_a_tiny_scale(path: Path, tiny: Callable[[Path], Run]):
    run = tiny(path)
    full, recipe = load_recipe(path), run.recipe
    assert kept_of(recipe) == kept_of(full)
    specialist = ensure_specialist(run)
    rows = [json.loads(line) for line in (specialist / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "learning_rate" in row]
    blocks = Blocks.open(ensure_data(run), recipe.train.epochs)

    # Stages in the recipe's order, each with its part of the tokens and its shares.
    assert [stage.name for stage in blocks.stages] == [stage.name for stage in full.data.stages]
    total = sum(stage.tokens for stage in full.data.stages)
    counts = plan_steps(blocks, recipe.train.global_batch_size).steps_by_stage
    names = [s.name for s, count in zip(blocks.stages, counts, strict=True) for _ in range(count)]
    if len(blocks.stages) > 1:
        assert [row["stage"] for row in steps] == names
    for stage, wanted in zip(blocks.stages, full.data.stages, strict=True):
        block = stage.sequence_length
        assert block == (wanted.sequence_length or full.data.sequence_length) * LONGEST // max(
            s.sequence_length or full.data.sequence_length for s in full.data.stages
        )
        planned = TOKENS * wanted.tokens / total
        for share in stage.shares:
            tokens = planned * wanted.mixture[share.source]
            assert abs(share.count * block - tokens) <= 0.25 * tokens + block, share
        seen = [stage.source_at(position) for position in range(stage.num_positions)]
        assert {share.source: share.count for share in stage.shares} == {
            name: seen.count(name) for name in set(seen)
        }

    # The learning rate of each step is the schedule's, stage by stage.
    own = [
        recipe.train.stages[s.name].schedule if s.name in recipe.train.stages else None
        for s in blocks.stages
    ]
    expected = [
        rate_in_stages(step, counts, own, recipe.train.schedule) for step in range(sum(counts))
    ]
    assert [row["learning_rate"] for row in steps] == pytest.approx(expected)
    assert full.train.schedule.kind == recipe.train.schedule.kind

    # Positions, tokens and files.
    config = json.loads((specialist / "config.json").read_text())
    thetas = [s.rope_theta for s in full.train.stages.values() if s.rope_theta is not None]
    assert config["rope_parameters"]["rope_theta"] == (thetas[-1] if thetas else 10_000.0)
    added = recipe.tokenizer.special_tokens if recipe.tokenizer is not None else ()
    assert config["vocab_size"] == 320 + len(added)
    assert (ensure_general(run).name == "general-extended") == bool(added)
    moe = recipe.model.moe
    assert config.get("num_local_experts") == (moe.num_experts if moe is not None else None)
    for name in ("model.safetensors", "tokenizer.json", "manifest.json"):
        assert (specialist / name).is_file()
    if recipe.sft is not None:
        tuned = ensure_sft(run)
        assert (tuned / "model.safetensors").is_file()
        assert json.loads((tuned / "manifest.json").read_text())["inputs"]["start"]


def test_there_are_such_systems():
    assert {"llama3-sec", "code-llama", "meditron", "composer2"} <= {path.stem for path in SYSTEMS}
