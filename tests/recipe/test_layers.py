"""Variants and scales of a recipe: what is laid over what, and what a scale must keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.errors import ConfigError
from toolkit.pipeline.run import Run
from toolkit.recipe.layers import overlay, split_name
from toolkit.recipe.load import load_recipe
from toolkit.recipe.schema import Recipe


def source(role: str, name: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "hub": {"dataset": f"org/{name}"}, **more}


def recipe(**more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": {"hub": "org/large", "name": "Large"},
        "data": {
            "sequence_length": 4096,
            "replay_fraction": 0.25,
            "sources": {
                "papers": source("domain", "papers", tokens=3000, weight=2.0),
                "guides": source("domain", "guides", tokens=1000),
                "web": source("general", "web"),
            },
        },
        "train": {"schedule": {"peak_lr": 3e-4, "warmup_fraction": 0.01}},
    }
    return {**values, **more}


SMALL = {
    "model": {"path": "small"},
    "tokens": 1000,
    "sequence_divisor": 16,
    "data": {
        "sources": {
            "papers": {"role": "domain", "files": ["p/*.txt"], "weight": 2.0},
            "web": {"role": "general", "files": ["w.jsonl"]},
        }
    },
    "train": {"schedule": {"peak_lr": 2e-4}},
}
STAGES = [
    {"name": "long", "tokens": 900, "mixture": {"papers": 0.7, "web": 0.3}},
    {"name": "last", "tokens": 100, "mixture": {"papers": 1.0}, "sequence_length": 16384},
]


def load(folder: Path, values: dict[str, Any], *layers: str) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_recipe(path, layers)


def faults(folder: Path, values: dict[str, Any], *layers: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, values, *layers)
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"{folder / 'mine.yaml'} is not a valid recipe:"
    return lines


def test_mappings_merge_and_the_rest_replaces():
    values = {"a": {"b": [1, 2], "c": {"d": 1, "e": 2}}, "f": 3}
    layer = {"a": {"b": [4], "c": {"e": 5}}, "f": None, "g": None}
    assert overlay(values, layer) == {"a": {"b": [4], "c": {"d": 1, "e": 5}}, "g": None}
    assert values["a"]["b"] == [1, 2]  # type: ignore[index]


def test_names():
    assert split_name("finance") == ("finance", ())
    assert split_name("x.yaml") == ("x.yaml", ())
    assert split_name("x@y.yaml") == ("x@y.yaml", ())
    assert split_name("a/x.yaml@none@laptop") == ("a/x.yaml", ("none", "laptop"))


def test_a_scale_replaces_models_and_sources_whole(tmp_path: Path):
    values = recipe(scales={"laptop": SMALL})
    full, small = load(tmp_path, values), load(tmp_path, values, "laptop")
    assert full.model.hub == "org/large"
    assert small.model.hub is None
    assert small.model.name is None
    assert small.data.sources["papers"].tokens is None
    assert small.train.schedule.peak_lr == 2e-4
    assert small.train.schedule.warmup_fraction == 0.01
    assert full.data.sequence_length == 4096
    assert small.data.sequence_length == 256


def test_without_stages_domain_sources_are_cut(tmp_path: Path):
    # 1000 tokens, a quarter of them replay: 750 of the domain. papers hold 3000 and are seen twice,
    # guides hold 1000: of 7000 in all, papers are cut to 750 * 3000 / 7000 and guides to a third.
    small = load(tmp_path, recipe(scales={"laptop": SMALL}), "laptop")
    cut = {n: s.split["train"].max_tokens for n, s in small.data.sources.items()}
    assert cut == {"papers": 321, "guides": 107, "web": None}


def test_a_source_that_is_not_trained_on_takes_nothing_of_the_budget(tmp_path: Path):
    values = recipe(scales={"laptop": {"tokens": 1000}})
    values["data"]["sources"]["guides"]["split"] = {"test": {}}
    small = load(tmp_path, values, "laptop")
    # 750 of the domain, all of them of the papers, which are seen twice.
    assert small.data.sources["papers"].split["train"].max_tokens == 375
    assert "train" not in small.data.sources["guides"].split


def test_stages_are_scaled_in_proportion(tmp_path: Path):
    values = recipe(scales={"laptop": SMALL})
    values["data"]["stages"] = STAGES
    stages = load(tmp_path, values, "laptop").data.stages
    assert [stage.tokens for stage in stages] == [900, 100]
    values["scales"] = {"laptop": {**SMALL, "tokens": 50}}
    stages = load(tmp_path, values, "laptop").data.stages
    assert [stage.tokens for stage in stages] == [45, 5]
    assert [stage.sequence_length for stage in stages] == [None, 1024]
    assert [stage.name for stage in stages] == ["long", "last"]


def test_a_variant_may_change_anything_and_a_scale_follows_it(tmp_path: Path):
    none = {"data": {"replay_fraction": 0.0, "sources": {"papers": None}}}
    values = recipe(variants={"none": none}, scales={"laptop": SMALL})
    both = load(tmp_path, values, "none", "laptop")
    assert both.data.replay_fraction == 0.0
    assert set(both.data.sources) == {"guides", "web"}  # the scale does not bring papers back
    assert both.data.sources["guides"].split["train"].max_tokens == 1000
    assert both.model.path == Path("small")


def test_a_scale_may_say_more_of_a_variant(tmp_path: Path):
    high = {"train": {"schedule": {"peak_lr": 6e-4}}}
    own = {"variants": {"high": {"train": {"schedule": {"peak_lr": 4e-4}}, "tokens": 500}}}
    values = recipe(variants={"high": high}, scales={"laptop": {**SMALL, **own}})
    assert load(tmp_path, values, "high").train.schedule.peak_lr == 6e-4
    assert load(tmp_path, values, "laptop").train.schedule.peak_lr == 2e-4
    both = load(tmp_path, values, "high", "laptop")
    assert both.train.schedule.peak_lr == 4e-4
    assert both.data.sources["guides"].split["train"].max_tokens == 54


def test_what_a_scale_must_keep_is_told_at_each_key(tmp_path: Path):
    changed = {
        **SMALL,
        "data": {
            "replay_fraction": 0.1,
            "fim": {"rate": 0.5},
            "sources": {
                "papers": {"role": "general", "files": ["p/*.txt"], "weight": 2.0},
                "more": source("domain", "more"),
            },
            "stages": [{**STAGES[0], "mixture": {"papers": 1.0}}],
        },
        "train": {"schedule": {"kind": "wsd", "peak_lr": 1e-4}},
        "search": {"merges": ["ties"]},
    }
    values = recipe(scales={"laptop": changed})
    values["data"]["stages"] = STAGES
    lines = faults(tmp_path, values)  # although the full recipe is asked for
    keys = [line.split(": ")[0] for line in lines]
    assert keys == [
        f"scales.laptop.{key}"
        for key in (
            "data.replay_fraction",
            "data.stages.0.mixture",
            "data.stages.1.name",
            "data.stages.1.mixture",
            "data.fim.rate",
            "data.sources.papers.role",
            "train.schedule.kind",
            "search.merges",
            "data.sources.more.role",
            "data.sources.more.weight",
            "data.sources.more.fim",
        )
    ]
    assert lines[0] == "scales.laptop.data.replay_fraction: a scale must keep it (0.25 -> 0.1)"


def test_every_layer_is_checked_when_the_recipe_is_read(tmp_path: Path):
    values = recipe(
        variants={"a": {"train": {"epoch": 2}}, "b": {"seed": -1}, "c": 3},
        scales={"small": {"tokens": 0}, "b": {}, "x y": {}, "d": {"variants": {"no": {}}}},
    )
    lines = faults(tmp_path, values)
    assert lines == [
        "variants.c: must be a mapping (got 3)",
        "scales.b: is also a variant; a name stands for one layer",
        "scales.x y: a name has letters, digits, dots and dashes only",
        "scales.d.variants.no: there is no such variant",
        "variants.a.train.epoch: unknown key; did you mean epochs?",
        "variants.b.seed: must be at least 0 (got -1)",
        "scales.small.tokens: must be greater than 0 (got 0)",
    ]


def test_faults_of_the_recipe_are_told_once(tmp_path: Path):
    values = recipe(seed=-1, variants={"a": {"train": {"epochs": 0}}}, scales={"laptop": SMALL})
    assert faults(tmp_path, values) == [
        "seed: must be at least 0 (got -1)",
        "variants.a.train.epochs: must be greater than 0 (got 0)",
    ]


def test_asking_for_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = recipe(variants={"none": {}, "some": {}}, scales={"laptop": SMALL})
    with pytest.raises(ConfigError, match="'laptob'; did you mean laptop"):
        load(tmp_path, values, "laptob")
    for wrong in (("laptop", "none"), ("none", "some")):
        with pytest.raises(ConfigError, match="NAME@variant@scale"):
            load(tmp_path, values, *wrong)
    monkeypatch.chdir(tmp_path)
    run = Run.open("mine.yaml@none@laptop", Path("runs"))
    assert (run.name, run.root) == ("mine@none@laptop", Path("runs/mine@none@laptop"))
    assert Run.open(run.asked_for).recipe == run.recipe


def test_faults_of_all_layers_are_told_at_once(tmp_path: Path):
    """Whatever else is wrong with the recipe, a scale's amounts and rules are looked at."""
    broken = {**SMALL, "sequence_divisor": 0, "train": {"schedule": {"kind": "wsd"}}}
    values = recipe(scales={"laptop": broken})
    values["data"]["stages"] = [{**STAGES[0], "mixture": {"papers": 0.5, "web": 0.3}}]
    values["variants"] = {"long": {"train": {"stages": {"long": {}, "last": {}}}}}
    assert faults(tmp_path, values) == [
        "data.stages.0.mixture: must add up to 1 (they add up to 0.8)",
        "variants.long.train.stages.last: there is no such stage in data.stages. Stages: long",
        "scales.laptop.sequence_divisor: must be greater than 0 (got 0)",
        "scales.laptop.train.schedule.kind: a scale must keep it ('cosine' -> 'wsd')",
    ]
