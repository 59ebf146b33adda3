"""The recipes of published comparisons: they are valid in all their layers, and they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.small_recipes import COMPARISONS, RECIPES, write_small
from toolkit.load_yaml import load_yaml
from toolkit.pipeline.run import Run
from toolkit.recipe.load import load_recipe
from toolkit.study.stage import ensure_study

LAPTOP_TOKENS = 25_000


@pytest.mark.parametrize("name", ["llama3-sec", "code-llama", "meditron", "composer2"])
def test_systems_have_claims_of_their_own(name: str):
    study = load_recipe(RECIPES / f"{name}.yaml").study
    assert study is not None
    assert any(claim.mark for claim in study.claims)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_in_all_layers(path: Path):
    values = load_yaml(path)
    for scale in (None, *values.get("scales", {})):
        for variant in (None, *values.get("variants", {})):
            recipe = load_recipe(path, [name for name in (variant, scale) if name])
            assert recipe.study == load_recipe(path).study


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_are_published_and_small_enough(name: str):
    path = RECIPES / f"{name}.yaml"
    full = load_recipe(path)
    assert full.study is not None
    assert any(claim.mark for claim in full.study.claims)
    assert all(source.tokens for source in full.data.sources.values())
    shape = full.model.shape or (full.model.scratch and full.model.scratch.shape)
    assert shape is not None
    for variant in load_yaml(path)["variants"]:
        small = load_recipe(path, [variant, "laptop"])
        assert small.train.forgetting_monitor.evaluations == 0
        assert all(source.artifact for source in small.data.sources.values())
        total = sum(stage.tokens for stage in small.data.stages)
        if small.model.scratch is None:
            assert total <= LAPTOP_TOKENS


@pytest.mark.parametrize("name", [*COMPARISONS, "code-llama"])
def test_a_comparison_runs_at_a_still_smaller_scale(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Path]
):
    write_small(name, tmp_path, make_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = Run.open(f"{name}@laptop")
    folder = ensure_study(run)
    found = json.loads((folder / "study.json").read_text())
    assert run.recipe.study is not None
    assert len(found["claims"]) == len(run.recipe.study.claims)
    verdicts = {"agrees", "disagrees", "not visible at this scale"}
    assert {claim["verdict"] for claim in found["claims"]} <= verdicts
    for claim in found["claims"]:
        assert claim["interval"]["low"] <= claim["interval"]["estimate"]
        assert claim["together"]["low"] <= claim["interval"]["low"]
    trained = {name for figures in found["figures"].values() for name in figures["models"]}
    named = {name for claim in run.recipe.study.claims for name in claim.measure.models()}
    assert trained == named
