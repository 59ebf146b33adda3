"""Recipes with several finished specialists: merges over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.conftest import paragraph
from tests.helpers.adapters import make_adapter
from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project
from toolkit.checkpoint.stored_names import parameters_by_name
from toolkit.errors import ConfigError, MergeError, PublishError
from toolkit.pipeline.merge_output import references
from toolkit.pipeline.models import ensure_cpt, ensure_specialist, ensure_specialists
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_merge
from toolkit.publish.card import model_card
from toolkit.publish.material import Material, card_facts, find_parents
from toolkit.publish.public import public_merge
from toolkit.report.table import outcome_table
from toolkit.select.results import MergeResults, read_results
from toolkit.stage import load_json, read_manifest

SEARCH = {"sweep": [0.5], "num_trials": 8, "refine": 1}
HALVES = {"validation": {"fraction": 0.5}, "test": {"fraction": 0.5}}


def make_tuned(model: Path, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    tuned = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    tuned.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((model / name).read_bytes())


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_project(tmp_path, make_model))
    for seed, name in enumerate(("finance", "law"), 2):
        make_tuned(Path("model"), Path(name), seed)
        Path(f"{name}-docs").mkdir()
        for number in range(10):
            text = paragraph(100 * seed + number, sentences=20)
            Path(f"{name}-docs/{number}.txt").write_text(text)
    return tmp_path


def values_of(**changes: Any) -> dict[str, Any]:
    values = recipe(search=SEARCH)
    del values["train"]
    web = {**values["data"]["sources"]["web"], "split": HALVES}
    sources = {
        "finance": {"role": "domain", "files": ["finance-docs/*.txt"]},
        "cases": {"role": "domain", "files": ["law-docs/*.txt"], "specialist": "law"},
        "web": web,
    }
    values["data"] = {**values["data"], "sources": sources}
    values["specialists"] = {"finance": {"path": "finance"}, "law": {"path": "law"}}
    return values | changes


def open_several(values: Mapping[str, Any]) -> Run:
    Path("mine.yaml").write_text(yaml.safe_dump(dict(values)))
    return Run.open("mine.yaml", Path("runs"))


def faults_of(values: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        open_several(values)
    return [str(fault) for fault in caught.value.faults]


def test_a_merge_over_all(project: Path, capsys: pytest.CaptureFixture[str]):
    run = open_several(values_of())
    assert run.recipe.search.merges == ("specialists", "specialists-ties")
    merged = ensure_merge(run)
    results = read_results(merged)
    assert set(read_manifest(merged)["inputs"]) >= {"specialists/finance", "specialists/law"}
    names = [row.name for row in results.candidates]
    assert names[:5] == ["general", "uniform mean", "linear alpha=0.5", "finance", "law"]
    assert {name.split()[0] for name in names[5:8]} <= {"specialists", "specialists-ties"}
    several = results.several
    assert several is not None
    assert {one.name: one.sets for one in several.specialists} == {
        "finance": ("finance",),
        "law": ("cases",),
    }
    assert several.weights == {"finance": 1.0, "cases": 1.0}
    finance = several.specialists[0]
    assert finance.own_change == finance.figures.set_changes["finance"]
    assert results.gain_kept is None
    assert set(results.documents[0].specialists) == {"finance", "law"}
    assert MergeResults.model_validate(load_json(merged / "report.json")) == results

    page = (merged / "report.html").read_text()
    assert "What each specialist costs the others" in page
    assert f"uniform mean, α={several.fraction:g}" in page
    capsys.readouterr()
    outcome_table(results, merged)
    told = " ".join(capsys.readouterr().out.split())
    assert "what each specialist costs the others" in told
    assert "The domain figure is the mean of absolute figures, weighted" in told
    assert "were trained elsewhere, and what they were trained on is not known" in told
    assert AutoModelForCausalLM.from_pretrained(merged) is not None

    folders = (Path("model"), ensure_specialists(run), run.root / "data", merged)
    material = Material(run.recipe, run.root, *folders)
    parents = find_parents(run.recipe, "org/out", material.places)
    assert [parent.role for parent in parents] == ["general", "finance", "law"]
    card = model_card(card_facts(material, "safetensors", "org/out", parents, {}))
    assert "What the specialists were trained on is not known here" in card
    assert "| law |" in card


def test_the_ladder_is_the_uniform_mean(project: Path):
    values = values_of(search={**SEARCH, "merges": [], "num_trials": 5})
    merged = ensure_merge(open_several(values))
    results = read_results(merged)
    folders = {name: Path(name) for name in ("model", "finance", "law")}
    tensors = {
        name: parameters_by_name(AutoModelForCausalLM.from_pretrained(folder))
        for name, folder in folders.items()
    }
    row = next(row for row in results.candidates if row.name == "linear alpha=0.5")
    name = "model.layers.0.mlp.up_proj.weight"
    general, finance, law = (tensors[model][name].detach() for model in folders)
    mean = 0.5 * general + 0.25 * finance + 0.25 * law
    one, whole = torch.norm(mean - general), torch.norm((finance + law) / 2 - general)
    assert row.distance == pytest.approx(float(one / whole), rel=1e-3)


def test_a_domain_may_be_held_by_itself(project: Path):
    values = values_of(select={"general_tolerance": 0.5, "domain_tolerance": 0.0})
    results = read_results(ensure_merge(open_several(values)))
    tolerances = {row.name: row.tolerance for row in results.sets if row.role == "domain"}
    assert tolerances == {"finance": 0.0, "cases": 0.0}
    tested = {test.name for step in results.ladder for test in step.tests}
    assert tested & {"finance", "cases"}
    plain = values_of(select={"general_tolerance": 0.5})
    assert (
        "domain_tolerance"
        not in read_manifest(ensure_merge(open_several(plain)))["config"]["select"]
    )


def test_an_adapter_among_several(project: Path):
    make_adapter(Path("model"), Path("lora"), target_modules=["q_proj"])
    specialists = {"finance": {"adapter": "lora"}, "law": {"path": "law"}}
    run = open_several(values_of(specialists=specialists))
    assert ensure_specialists(run) == {
        "finance": run.root / "specialists" / "finance" / "specialist",
        "law": Path("law"),
    }
    with pytest.raises(ConfigError, match="nothing to train"):
        ensure_cpt(run)
    with pytest.raises(ConfigError, match=r"several specialists \(finance, law\), and one is"):
        ensure_specialist(run)


def test_sets_must_be_owned(project: Path):
    values = values_of()
    del values["data"]["sources"]["cases"]["specialist"]
    lines = faults_of(values)
    assert lines[0].startswith("data.sources.cases: has role domain, and is of none of the spec")
    assert lines[1].startswith("specialists.law: has no domain set of its own")
    values["data"]["sources"]["cases"]["specialist"] = "lwa"
    assert faults_of(values)[0].startswith(
        "data.sources.cases.specialist: there is no specialist 'lwa'; did you mean law?"
    )


def test_names_and_numbers_of_specialists(project: Path):
    values = values_of(specialist={"path": "law"})
    assert "specialists: stand beside specialist; give the one or the others" in faults_of(values)
    values = values_of(specialists={"finance": {"path": "finance"}})
    del values["data"]["sources"]["cases"]
    assert faults_of(values) == ["specialists: are one only; give it as specialist"]
    values = values_of(models={"law": {"path": "model"}})
    assert any(line.startswith("specialists.law: must be a word") for line in faults_of(values))
    values = values_of(search={**SEARCH, "merges": ["ties"]})
    (line,) = faults_of(values)
    assert "'specialist'; here there are only general, finance and law" in line


def test_models_that_do_not_fit_each_other(project: Path, make_model: Callable[..., Path]):
    make_model(Path("wide"), hidden_size=48)
    specialists = {"finance": {"path": "finance"}, "law": {"path": "wide"}}
    with pytest.raises(MergeError, match="law: hidden_size is 48, in general 32"):
        ensure_merge(open_several(values_of(specialists=specialists)))
    specialists = {"finance": {"path": "finance"}, "law": {"path": "model"}}
    with pytest.raises(MergeError, match=r"law \(model\) is the general model itself"):
        ensure_merge(open_several(values_of(specialists=specialists)))


def test_folders_of_one_name_are_told_apart_by_role():
    places = {"general": Path("/a/model"), "finance": Path("/b/cpt"), "law": Path("/c/cpt")}
    texts = references(places, Path("/runs"))
    assert texts == {"general": "./model", "finance": "./finance", "law": "./law"}
    models = [{"model": text} for text in texts.values()]
    names = {role: f"org/{role}" for role in places}
    public = public_merge({"models": models}, places, names)
    assert [row["model"] for row in public["models"]] == ["org/general", "org/finance", "org/law"]
    # A folder that is called as another model is never taken for it.
    places["general"] = Path("/a/law")
    texts = references(places, Path("/runs"))
    assert len(set(texts.values())) == 3
    with pytest.raises(PublishError, match="none of the run's models"):
        public_merge({"models": [{"model": texts["law"]}]}, places, names)
