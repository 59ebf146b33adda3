"""Files of ways: what they hold, and each fault in one line at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.projects import recipe
from toolkit.compare.ways import find_ways, load_comparison
from toolkit.errors import ConfigError
from toolkit.load_yaml import load_yaml
from toolkit.recipe.load import find_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.shipped import folders_of, names_in

TWO: dict[str, Any] = {"first": {}, "second": {"recipe": {"data": {"replay_fraction": 0.3}}}}


def faults_of(tmp_path: Path, text: str | dict[str, Any], **changes: Any) -> list[str]:
    path = tmp_path / "ways.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    values = {**recipe(), **changes}
    with pytest.raises(ConfigError) as caught:
        load_comparison(path, Recipe.model_validate(values))
    lines = str(caught.value).replace(str(path), "ways.yaml").splitlines()
    return [line.strip() for line in lines[1:]] or lines


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ways": {}}, "(top level): ways: there are none; name the reference and one way beside"),
        ({"reference": "frist"}, "reference: there is no way 'frist'; did you mean first?"),
        ({"alpha": [0.5]}, "alpha: unknown key; did you mean alphas?"),
        ({"alphas": [0.5, 0.2]}, "alphas: must rise (got [0.5, 0.2])"),
        (
            {"ways": {"first": {"recepe": {}}}},
            "ways.first.recepe: unknown key; did you mean recipe",
        ),
        ({"ways": {"first": {"merges": []}}}, "ways.first.merges: are none, so there is nothing"),
        (
            {"merges": ["plane"]},
            "merges.0: must be one of 'none', 'plain', 'search' or 'heal' (got 'plane')",
        ),
        (
            {"ways": {"first": {"merges": ["heal"]}}},
            "ways.first.merges: heal needs a section heal in the way's recipe",
        ),
        ({"evaluate": {"retenton": {}}}, "evaluate.retenton: unknown key; did you mean retention?"),
    ],
)
def test_a_fault_of_the_file_is_told_at_its_key(
    tmp_path: Path, changes: dict[str, Any], fault: str
):
    (line,) = faults_of(tmp_path, {"reference": "first", "ways": TWO, **changes})
    assert fault in line


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"train": {"schedule": {"peek_lr": 1e-4}}},
            "ways.second.recipe.train.schedule.peek_lr: unknown key; did you mean peak_lr?",
        ),
        ({"trian": {}}, "ways.second.recipe.trian: unknown key; did you mean train?"),
        ({"seed": 4}, "ways.second.recipe.seed: is the same for all ways"),
        ({"evaluate": {}}, "further measures stand under evaluate of the file"),
        (
            {"data": {"replay_fraction": 1.5}},
            "ways.second.recipe.data.replay_fraction: must be less than 1",
        ),
        ({"train": {"start": "base"}}, "train.start: there is no model 'base' under models"),
    ],
)
def test_a_fault_of_a_way_is_told_at_the_recipes_key(
    tmp_path: Path, settings: dict[str, Any], fault: str
):
    ways = {"first": {}, "second": {"recipe": settings}}
    (line,) = faults_of(tmp_path, {"reference": "first", "ways": ways})
    assert fault in line


def test_all_faults_are_told_at_once(tmp_path: Path):
    ways = {"first": {"recipe": {"seed": 1}}, "second": {"recipe": {"trian": {}}}}
    assert len(faults_of(tmp_path, {"reference": "first", "ways": ways})) == 2


def test_two_ways_of_one_name_and_a_file_without_ways(tmp_path: Path):
    (line,) = faults_of(tmp_path, "reference: a\nways:\n  a: {}\n  a: {merges: [none]}\n")
    assert "key 'a' stands here twice" in line
    assert faults_of(tmp_path, "reference: a\n") == ["ways: is missing"]


def test_several_specialists_are_refused(tmp_path: Path):
    values = recipe()
    values["data"]["sources"]["web"]["specialist"] = None
    del values["train"]
    both = {"specialists": {"docs": {"path": "one"}, "other": {"path": "two"}}}
    values["data"]["sources"]["other"] = values["data"]["sources"]["docs"]
    (line,) = faults_of(
        tmp_path, {"reference": "first", "ways": TWO}, data=values["data"], train={}, **both
    )
    assert "names several specialists (docs, other), and ways of one are compared" in line


def test_the_reference_comes_first_and_equal_training_is_known(tmp_path: Path):
    path = tmp_path / "ways.yaml"
    ways = {**TWO, "third": {"recipe": {"search": {"merges": ["ties"]}}}}
    path.write_text(yaml.safe_dump({"reference": "second", "ways": ways}))
    found = load_comparison(path, Recipe.model_validate(recipe()))
    assert [way.name for way in found.ways] == ["second", "first", "third"]
    assert [way.trains_as for way in found.ways] == [None, None, "first"]
    assert found.ways[0].recipe.data.replay_fraction == 0.3
    assert found.ways[1].recipe == Recipe.model_validate(recipe())


@pytest.mark.parametrize("name", names_in([folder / "ways" for folder in folders_of("recipes")]))
def test_shipped_ways_fit_their_recipe(name: str):
    path = find_ways(name)
    own_recipe = load_recipe(find_recipe(name))
    found = load_comparison(path, own_recipe)
    assert found.reference.recipe == own_recipe  # its run is the recipe's own
    assert len(found.ways) == len(load_yaml(path)["ways"])
    kinds = {one.role for one in found.evaluate.multiple_choice}
    assert kinds == {"general"}


def test_an_unknown_file_of_ways_is_named_with_what_there_is():
    with pytest.raises(ConfigError, match=r"'finanse' in recipes/ways/ .* did you mean finance\?"):
        find_ways("finanse")
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file of ways"):
        find_ways("nothing.yaml")
