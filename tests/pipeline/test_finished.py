"""Recipes that name a finished specialist: nothing is trained, a merge is chosen all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.helpers.adapters import make_adapter, through_peft
from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project
from toolkit.checkpoint.stored_names import parameters_by_name
from toolkit.errors import ConfigError, MergeError, ToolkitError
from toolkit.pipeline.models import ensure_cpt, ensure_data, ensure_specialist
from toolkit.pipeline.power import run_power
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_merge
from toolkit.plan.plan import PlanRequest, make_plan
from toolkit.plan.table import show_plan
from toolkit.publish.card import model_card
from toolkit.publish.material import Material, card_facts, find_parents
from toolkit.report.table import outcome_table
from toolkit.select.results import read_results
from toolkit.stage import read_manifest

SEARCH = {"merges": ["ties"], "sweep": [0.5], "num_trials": 4, "refine": 0}


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_project(tmp_path, make_model))
    make_tuned(Path("model"), Path("tuned"))
    return tmp_path


def make_tuned(model: Path, folder: Path, scale: float = 0.02) -> Path:
    torch.manual_seed(2)
    tuned = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    tuned.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((model / name).read_bytes())
    return folder


def values_of(specialist: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The tiny recipe without anything that is for training."""
    values = recipe(specialist=specialist, search=SEARCH)
    del values["train"]
    values |= changes
    for source in values["data"]["sources"].values():
        source["split"].pop("train", None)
    return values


def open_finished(specialist: Mapping[str, Any], **changes: Any) -> Run:
    Path("mine.yaml").write_text(yaml.safe_dump(values_of(specialist, **changes)))
    return Run.open("mine.yaml", Path("runs"))


def test_a_merge_is_chosen_without_training(project: Path, capsys: pytest.CaptureFixture[str]):
    run = open_finished({"path": "tuned"})
    merged = ensure_merge(run)
    assert sorted(path.name for path in run.root.iterdir() if path.is_dir()) == ["data", "merge"]
    data = read_manifest(run.root / "data")
    assert "train" not in data["results"]
    assert data["config"]["for"] == "evaluation"
    assert not (run.root / "data" / "blocks.json").exists()
    results = read_results(merged)
    names = [row.name for row in results.candidates]
    assert names[:3] == ["general", "specialist", "linear alpha=0.5"]
    assert "what it was trained on is not known" in " ".join(results.remarks)
    assert AutoModelForCausalLM.from_pretrained(merged) is not None
    page = (merged / "report.html").read_text()
    assert "is not known here" in page
    assert "make cpt" not in page
    outcome_table(results, merged)
    assert "is not known here" in " ".join(capsys.readouterr().out.split())

    capsys.readouterr()
    assert ensure_merge(Run.open("mine.yaml", Path("runs"))) == merged
    assert "careful" not in capsys.readouterr().out

    # Another specialist under the same name is noticed by its bytes.
    make_tuned(Path("model"), Path("tuned"), scale=0.03)
    ensure_merge(Run.open("mine.yaml", Path("runs")))
    assert (run.root / "merge.1").is_dir()


def test_training_is_refused_in_one_line(project: Path):
    run = open_finished({"path": "tuned"})
    with pytest.raises(ConfigError, match="names a finished specialist, so there is nothing to tr"):
        ensure_cpt(run)


def test_sources_without_a_split_are_halves(project: Path):
    values = values_of({"path": "tuned"})
    del values["data"]["sources"]["docs"]["split"]
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    run = Run.open("mine.yaml", Path("runs"))
    results = read_manifest(ensure_data(run))["results"]
    counts = [results[split]["domain_documents"] for split in ("validation", "test")]
    assert sum(counts) == 16
    assert min(counts) > 3


def test_a_train_split_is_left_aside(project: Path):
    values = values_of({"path": "tuned"})
    values["data"]["sources"]["docs"] = recipe()["data"]["sources"]["docs"]
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    results = read_manifest(ensure_data(Run.open("mine.yaml", Path("runs"))))["results"]
    counts = [results[split]["domain_documents"] for split in ("validation", "test")]
    assert sum(counts) == 8
    assert results["sources"]["docs"]["not needed"]["documents"] == 8


def test_what_has_no_effect_is_a_fault(project: Path):
    values = values_of({"path": "tuned"}, train={"epochs": 2}, tokenizer={"new_tokens": 8})
    values["data"]["stages"] = [{"name": "a", "tokens": 10, "mixture": {"docs": 1.0}}]
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        Run.open("mine.yaml", Path("runs"))
    keys = [fault.where for fault in caught.value.faults]
    assert keys == ["train", "tokenizer", "data.stages"]
    # A variant of a recipe that trains takes its section away.
    values = recipe(variants={"mine": {"specialist": {"path": "tuned"}, "train": None}})
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    assert not Run.open("mine.yaml@mine", Path("runs")).recipe.trains
    assert Run.open("mine.yaml", Path("runs")).recipe.trains


def test_some_set_must_be_general(project: Path):
    values = values_of({"path": "tuned"})
    del values["data"]["sources"]["web"]
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    assert not Run.open("mine.yaml", Path("runs")).recipe.trains  # the model's own answers are
    values["evaluate"]["retention"] = {"num_prompts": 0}
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"evaluate\.retention: no set has the role general"):
        Run.open("mine.yaml", Path("runs"))


@pytest.mark.parametrize(
    ("specialist", "fault"),
    [
        ({}, "give exactly one of path, hub, run, artifact, adapter"),
        ({"path": "a", "hub": "b/c"}, "give exactly one of"),
        ({"path": "a", "revision": "1"}, "revision belongs to hub or adapter"),
        ({"path": "a", "strength": 0.5}, "strength belongs to adapter"),
        ({"adapter": "a", "strength": 0.0}, "must be greater than 0"),
        ({"adaptor": "a"}, "unknown key; did you mean adapter"),
    ],
)
def test_wrong_specialists_are_told_at_their_key(
    project: Path, specialist: dict[str, Any], fault: str
):
    with pytest.raises(ConfigError, match=rf"specialist.*: .*{fault}"):
        open_finished(specialist)


def test_models_that_do_not_fit_are_refused_before_anything_is_read(
    project: Path, make_model: Callable[..., Path]
):
    make_model(Path("wide"), hidden_size=48)
    make_model(Path("words"), seed=4)
    tokenizer = json.loads(Path("words/tokenizer.json").read_text())
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    turned = {word: number for number, word in enumerate([words[0], *words[:0:-1]])}
    tokenizer["model"]["vocab"] = turned
    Path("words/tokenizer.json").write_text(json.dumps(tokenizer))
    run = open_finished({"path": "wide"})
    with pytest.raises(MergeError, match=r"specialist: hidden_size is 48, in general 32"):
        ensure_merge(run)
    assert not (run.root / "data").exists()
    with pytest.raises(MergeError, match="ids stand for other tokens than in general"):
        ensure_merge(open_finished({"path": "words"}))
    with pytest.raises(MergeError, match=r"specialist \(model\) is the general model itself"):
        ensure_merge(open_finished({"path": "model"}))
    with pytest.raises(ToolkitError, match="nowhere"):
        ensure_merge(open_finished({"path": "nowhere"}))


def test_the_specialist_of_another_recipe(project: Path):
    Path("first.yaml").write_text(yaml.safe_dump(recipe()))
    run = open_finished({"run": "first.yaml"})
    assert ensure_specialist(run) == Path("runs/first/cpt")
    results = read_results(ensure_merge(run))
    assert any("that of the recipe first.yaml" in line for line in results.remarks)
    assert results.precision.training is not None
    with pytest.raises(ConfigError, match=r"specialist\.run: leads in a circle"):
        open_finished({"run": "mine.yaml"})


def test_an_adapter_is_merged_into_the_general_model(project: Path):
    make_adapter(Path("model"), Path("lora"), target_modules=["q_proj", "down_proj"])
    run = open_finished({"adapter": "lora"})
    folder = ensure_specialist(run)
    assert folder == run.root / "specialist"
    made = parameters_by_name(AutoModelForCausalLM.from_pretrained(folder))
    for name, tensor in through_peft(Path("model"), Path("lora")).items():
        if name in made:
            assert torch.allclose(made[name], tensor, atol=1e-6), name
    assert str(project) not in "".join(p.read_text() for p in folder.glob("*.json"))

    half = open_finished({"adapter": "lora", "strength": 0.5})
    between = parameters_by_name(AutoModelForCausalLM.from_pretrained(ensure_specialist(half)))
    start = parameters_by_name(AutoModelForCausalLM.from_pretrained("model"))
    for name, tensor in between.items():
        assert torch.allclose(tensor, (start[name] + made[name]) / 2, atol=1e-6), name
    results = read_results(ensure_merge(half))
    assert results.chosen in {row.name for row in results.candidates}


def test_an_adapter_of_another_model(
    project: Path, make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    make_model(Path("deep"), num_hidden_layers=3)
    make_adapter(Path("deep"), Path("lora"), target_modules=["q_proj"])
    with pytest.raises(MergeError, match=r"its adapter changes .*which the model has not"):
        ensure_specialist(open_finished({"adapter": "lora"}))
    make_adapter(Path("model"), Path("fits"), target_modules=["q_proj"])
    config = json.loads(Path("fits/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/other"
    Path("fits/adapter_config.json").write_text(json.dumps(config))
    model = {"path": "model", "name": "org/general"}
    run = open_finished({"adapter": "fits"}, model=model)
    ensure_specialist(run)
    assert "says that it was trained on org/other" in " ".join(capsys.readouterr().out.split())
    results = read_results(ensure_merge(run))
    assert any("trained on org/other" in line for line in results.remarks)


def test_plan_and_power_know_no_training(project: Path, capsys: pytest.CaptureFixture[str]):
    run = open_finished({"path": "tuned"})
    plan = make_plan(run, PlanRequest(measure=False))
    assert (plan.is_it_the_right_tool, plan.memory, plan.bills, plan.settings) == (None, (), (), ())
    assert [stage.name for stage in plan.stages] == ["merge search, at most"]
    show_plan(plan)
    told = " ".join(capsys.readouterr().out.split())
    assert "names a finished specialist" in told
    assert "cpt" not in told
    assert {one.name for one in run_power(run)} >= {"docs", "web"}


def test_the_card_says_what_is_not_known(project: Path):
    model = {"path": "model", "name": "org/general", "license": "apache-2.0"}
    run = open_finished({"path": "tuned", "name": "org/tuned"}, model=model)
    merged = ensure_merge(run)
    folders = (Path("model"), {"specialist": Path("tuned")}, run.root / "data", merged)
    material = Material(run.recipe, run.root, *folders)
    parents = find_parents(run.recipe, "org/out", material.places)
    assert [(p.role, p.name, p.license) for p in parents] == [
        ("general", "org/general", "apache-2.0"),
        ("specialist", "org/tuned", None),  # its terms are not guessed from the general model's
    ]
    card = model_card(card_facts(material, "safetensors", "org/out", parents, {}))
    assert "What the specialist was trained on is not known here" in card
    assert "continued-pretraining" not in card
    assert "replayed" not in card
    assert "## Merge\n" in card
