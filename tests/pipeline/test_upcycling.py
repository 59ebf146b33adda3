"""A recipe whose general model is a mixture of experts: made as a stage, trained, and merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, load_file

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.checkpoint.config import ShapeSection
from toolkit.errors import ConfigError
from toolkit.pipeline.models import ensure_cpt, ensure_general
from toolkit.pipeline.stages import ensure_merge
from toolkit.recipe.model import ModelSection, shape_of
from toolkit.section import parse_section
from toolkit.stage import read_manifest

MOE = {"base": {"path": "model"}, "num_experts": 3, "experts_per_token": 2, "noise_scale": 0.01}


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "other", seed=5)
    return make_project(tmp_path, make_model)


def general_of(project: Path, **moe: Any) -> Path:
    return ensure_general(open_run(project, {"model": {"moe": {**MOE, **moe}}}))


def test_the_mixture_is_made_once_and_anew_when_something_changes(project: Path, capsys: Any):
    folder = general_of(project)
    assert folder == Path("runs/tiny/general")
    results = read_manifest(folder)["results"]
    assert results["architecture"] == "MixtralForCausalLM"
    first = (folder / "manifest.json").read_bytes()
    general_of(project)
    assert (folder / "manifest.json").read_bytes() == first
    general_of(project, noise_scale=0.02)
    assert "noise_scale: 0.01 -> 0.02" in capsys.readouterr().out
    assert (folder / "manifest.json").read_bytes() != first


def test_a_killed_stage_is_made_whole(project: Path):
    folder = general_of(project)
    whole = load((folder / "model.safetensors").read_bytes())
    work = folder.with_name("general.partial")
    folder.rename(work)
    (work / "manifest.json").unlink()
    (work / "model.safetensors").write_bytes(b"half")
    again = load_file(general_of(project) / "model.safetensors")
    assert all((whole[name] == again[name]).all() for name in whole)


def test_experts_from_models_of_their_own(project: Path):
    folder = general_of(
        project,
        experts=[{"path": "model"}, {"path": "other"}, {"path": "model"}],
        router="hidden",
        prompts=[["the board"], ["a cat sat"], ["net income"]],
        noise_scale=0.0,
    )
    made = load_file(folder / "model.safetensors")
    other = load_file(project / "other" / "model.safetensors")
    expert = made["model.layers.1.block_sparse_moe.experts.1.w1.weight"]
    assert (expert == other["model.layers.1.mlp.gate_proj.weight"]).all()


def test_a_whole_run(project: Path):
    run = open_run(project, {"model": {"moe": MOE}})
    cpt = ensure_cpt(run)
    rows = [json.loads(line) for line in (cpt / "metrics.jsonl").read_text().splitlines()]
    shares = next(row["expert_shares"] for row in rows if "loss" in row)
    assert len(shares) == 3
    merged = ensure_merge(run)
    general = load_file("runs/tiny/general/model.safetensors")
    assert set(load_file(merged / "model.safetensors")) == set(general)


def test_the_shape_before_and_after_it_is_made(project: Path):
    folder = general_of(project)
    made = shape_of(ModelSection(path=folder))
    model = parse_section(ModelSection, {"moe": MOE}, where="test", what="model")
    before = shape_of(model)
    assert made is not None
    assert before is not None
    assert before.num_experts == made.num_experts == 3
    assert before.num_experts_per_tok == made.num_experts_per_tok == 2
    assert before.hidden_size == made.hidden_size == 32
    assert (before.moe_intermediate_size or before.intermediate_size) == 64
    declared = ShapeSection.model_validate(before.model_dump())
    elsewhere = ModelSection.model_validate(
        {"moe": {**MOE, "base": {"hub": "a/b", "shape": declared.model_dump()}}}
    )
    assert shape_of(elsewhere) == before
    assert shape_of(ModelSection.model_validate({"moe": {**MOE, "base": {"hub": "a/b"}}})) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts_per_token": 4}, "4 of 3"),
        ({"experts": [{"path": "a"}]}, "1 models for num_experts 3"),
        ({"router": "hidden"}, "prompts: belong to router hidden"),
        ({"router": "hidden", "prompts": [["a"], ["b"]]}, "2 lists for num_experts 3"),
        ({"num_expert": 4}, "unknown key; did you mean num_experts"),
        ({"base": {"path": "a", "hub": "b/c"}}, "give exactly one of artifact, path"),
        ({"base": {"moe": {"base": {"path": "a"}}}}, "not mixtures themselves"),
    ],
)
def test_bad_sections(change: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_section(ModelSection, {"moe": {**MOE, **change}}, where="test", what="model")
