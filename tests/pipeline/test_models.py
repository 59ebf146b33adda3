"""Models of a recipe besides the general one: in merges, and out of other recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project, open_run
from toolkit.checkpoint.stored_names import parameters_by_name
from toolkit.errors import CheckpointError, ConfigError
from toolkit.evaluate.config import BEHAVIOR_TITLES
from toolkit.merge.in_memory import LiveMerge
from toolkit.merge.to_disk import run_merge
from toolkit.pipeline.merge_output import named, references
from toolkit.pipeline.model_sources import fetch_snapshot
from toolkit.pipeline.models import ensure_general, ensure_models
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_merge
from toolkit.publish.material import Material, find_parents
from toolkit.search.space import load_spaces
from toolkit.select.results import read_results
from toolkit.shipped import shipped_folder
from toolkit.stage import read_manifest

SEARCH = {"merges": ["llama3-sec", "llama3-sec-three"], "sweep": [0.5], "num_trials": 5}


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_project(tmp_path, make_model))
    make_model(tmp_path / "base", seed=5)
    return tmp_path


def test_a_merge_names_a_third_model(project: Path):
    run = open_run(project, {"models": {"base": {"path": "base"}}, "search": SEARCH})
    merged = ensure_merge(run)
    manifest = read_manifest(merged)
    assert set(manifest["inputs"]) == {"general", "specialist", "data", "merges", "models/base"}
    names = {row["name"]: row["status"] for row in manifest["results"]["candidates"]}
    assert names["llama3-sec-three"] in {"complete", "dropped"}

    # What is scored in memory is what would be written: the published weights over depth.
    spaces = load_spaces(["llama3-sec-three"], [shipped_folder("merges")], ["base"])
    config = spaces[0].candidate({}).config
    folders = {"general": Path("model"), "specialist": run.root / "cpt", "base": Path("base")}
    live = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    LiveMerge(folders).apply(config, live)
    plain = named(config, references(folders, Path("runs")), torch.float32)
    assert (plain.base_model, plain.leader()) == ("./base", "./base")
    run_merge(plain, Path("out"))
    written = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    tensors = parameters_by_name(live)
    for name, tensor in parameters_by_name(written).items():
        assert torch.equal(tensor, tensors[name]), name
    head = "model.layers.1.self_attn.q_proj.weight"
    general = AutoModelForCausalLM.from_pretrained("model").get_parameter(head)
    base = AutoModelForCausalLM.from_pretrained("base").get_parameter(head)
    assert torch.allclose(tensors[head], general, atol=1e-6)  # attention at the top: weight 0 and 1
    assert not torch.allclose(tensors[head], base, atol=1e-2)


def test_a_published_merge_has_the_parents_that_it_names(project: Path):
    models = {"base": {"path": "base", "name": "org/base", "license": "mit"}}
    run = open_run(project, {"models": models, "search": SEARCH})
    merged = ensure_merge(run)
    folders = (Path("model"), {"specialist": run.root / "cpt"}, run.root / "data", merged)
    material = Material(run.recipe, run.root, *folders, ensure_models(run))
    uses_base = "./base" in (merged / "merge.yaml").read_text()
    assert set(material.places) == {"general", "specialist", *(["base"] if uses_base else [])}
    parents = find_parents(run.recipe, "org/out", ["base"])
    assert [(p.role, p.name, p.license) for p in parents][2:] == [("base", "org/base", "mit")]


def test_without_the_model_the_merge_is_refused(project: Path):
    with pytest.raises(ConfigError, match=r"'base'; here there are only general and specialist"):
        load_spaces(["llama3-sec-three"], [shipped_folder("merges")])


def write(name: str, model: dict[str, str]) -> None:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe(model=model)))


def test_the_specialist_of_another_recipe_is_a_model(project: Path):
    write("first", {"path": "model"})
    write("second", {"run": "first.yaml"})
    general = ensure_general(Run.open("second.yaml"))
    assert general == Path("runs/first/cpt")
    assert json.loads((general / "manifest.json").read_text())["stage"] == "cpt"


def test_runs_that_lead_in_a_circle_are_refused(project: Path):
    write("first", {"run": "third.yaml"})
    write("second", {"run": "first.yaml"})
    write("third", {"run": "second.yaml"})
    with pytest.raises(
        ConfigError, match=r"in a circle: second\.yaml -> first\.yaml -> third\.yaml"
    ):
        Run.open("second.yaml")
    write("first", {"run": "nowhere"})
    with pytest.raises(ConfigError, match=r"first\.yaml: model\.run: .*nowhere|no recipe"):
        Run.open("first.yaml")


def test_models_with_different_rotary_bases_are_not_merged(project: Path):
    run = open_run(project, {"train": {"stages": {"train": {"rope_theta": 1e6}}}})
    with pytest.raises(ConfigError, match=r"rotary base is 10000 in model and 1e\+06 in"):
        ensure_merge(run)


def test_how_models_answer_is_counted_where_the_recipe_asks(project: Path):
    counted = {"num_prompts": 12, "max_new_tokens": 5, "roles": {"unfinished": "general"}}
    evaluate = {**recipe()["evaluate"], "behavior": {**counted, "tolerance": 1.0}}
    run = open_run(project, {"evaluate": evaluate, "search": {**SEARCH, "merges": ["linear"]}})
    results = read_results(ensure_merge(run))
    rows = {row.name: row for row in results.sets}
    unfinished = rows[BEHAVIOR_TITLES["unfinished"]]
    assert (unfinished.role, unfinished.unit, unfinished.tolerance) == ("general", "error", 1.0)
    assert rows[BEHAVIOR_TITLES["script"]].role == "watch"
    assert set(BEHAVIOR_TITLES.values()) <= set(results.models.merge.set_changes)


def test_a_hub_that_says_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def fail(*_names: object, **_more: object) -> str:
        raise OSError("")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"org/x is not in the cache .* \(OSError\)\. Check"):
        fetch_snapshot("org/x", None)
