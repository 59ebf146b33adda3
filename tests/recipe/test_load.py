"""Every recipe that is shipped is valid, and says what the design says."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import ConfigError
from toolkit.recipe.load import find_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.search.space import load_spaces
from toolkit.shipped import shipped_folder

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path):
    recipe = load_recipe(path)
    assert load_spaces(recipe.search.merges, [shipped_folder("merges")], recipe.models)


def test_a_model_has_exactly_one_place():
    with pytest.raises(ValueError, match="exactly one of artifact, path, hub, run"):
        Recipe.model_validate({"model": {"path": "a", "hub": "b"}})


def test_a_recipe_can_be_given_by_path(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="no such recipe file"):
        find_recipe(str(path))
    path.touch()
    assert find_recipe(str(path)) == path


def test_own_recipes_come_before_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("finance") == shipped_folder("recipes") / "finance.yaml"
    own = tmp_path / "recipes" / "finance.yaml"
    own.parent.mkdir()
    own.touch()
    assert find_recipe("finance").samefile(own)
    assert find_recipe("law") == shipped_folder("recipes") / "law.yaml"
    with pytest.raises(ConfigError, match=r"no recipe 'finanz'.*did you mean finance"):
        find_recipe("finanz")


def test_former_keys_of_a_whole_recipe_are_answered_at_once(tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text(FORMER)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "  data.sequence_tokens: is called sequence_length now",
        "  data.sources.docs.artefact: is called artifact now",
        "  data.sources.docs.split.tuning: is called validation now",
        "  train.blocks_per_step: is called global_batch_size now",
        "  train.schedule.rewarm_fraction: is called warmup_fraction now",
        "  variants.small.train.micro_batch_blocks: is called micro_batch_size now",
    ]


FORMER = """
model: {path: here}
data:
  sequence_tokens: 64
  sources:
    docs: {role: domain, artefact: {}, split: {tuning: {}}}
    web: {role: general, files: ["*.txt"]}
train:
  blocks_per_step: 2
  schedule: {rewarm_fraction: 0.02}
variants:
  small: {train: {micro_batch_blocks: 1}}
"""
