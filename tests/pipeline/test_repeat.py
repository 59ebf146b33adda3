"""Runs over seeds: what is shared, folders apart, and the seed's share in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.outcomes import interval, make_values
from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import count_finished, make_project, open_run
from toolkit.errors import ConfigError
from toolkit.pipeline.models import (
    ensure_cpt,
    ensure_data,
    ensure_finished,
    ensure_general,
    ensure_models,
)
from toolkit.pipeline.repeat import compare_seeds, of_seed, run_repeat, show_seeds
from toolkit.pipeline.run import Run
from toolkit.recipe.model import SpecialistSection
from toolkit.recipe.schema import Recipe
from toolkit.search.config import SearchSection
from toolkit.select.results import MergeResults
from toolkit.stage import content_hash, load_json
from toolkit.statistics.interval import student_quantile

MOE = {"base": {"path": "model"}, "num_experts": 2, "experts_per_token": 1}


def make_seeds(**changes: Any) -> dict[int, MergeResults]:
    """Results of three seeds; `changes` are those of the last."""
    values = {}
    half = 0.01 * student_quantile(0.975, 39)  # of a standard error of 0.01 over 40 groups
    for seed, gain in ((0, -0.10), (1, -0.12), (2, -0.14)):
        values[seed] = make_values(gain_kept=interval(0.9, half))
        values[seed]["models"]["merge"]["domain_change"] = interval(gain, half)
    values[2] |= {"gain_kept": None, **changes}  # nothing to keep: no mean of the others
    return {seed: MergeResults.model_validate(one) for seed, one in values.items()}


def test_scatter_between_seeds_stands_beside_that_over_items(capsys: pytest.CaptureFixture[str]):
    results = make_seeds()
    found = compare_seeds(results, same_documents=True)
    assert found.figures["domain, change"].model_dump() == pytest.approx(
        {"mean": -0.12, "between_seeds": 0.02, "over_documents": 0.01, "of_the_seed": 0.02},
        rel=1e-3,
    )
    assert "gain kept" not in found.figures
    assert found.seeds["1"].chosen == results[1].chosen
    show_seeds(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "-0.1200" in printed
    assert "3 seeds chose 1 different merge;" in printed
    assert "within 0.52 to 6.3 times" in printed


def test_documents_drawn_anew_are_not_taken_for_the_seed(capsys: pytest.CaptureFixture[str]):
    results = make_seeds(chosen="general")
    found = compare_seeds(results, same_documents=False)
    # 0.02 between seeds, of which documents alone make 0.01: the root of 0.0004 - 0.0001
    assert found.figures["domain, change"].of_the_seed == pytest.approx(0.01732, rel=1e-3)
    show_seeds(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "split anew for each seed" in printed
    assert "3 seeds chose 2 different merges" in printed


def test_each_seed_has_a_folder_of_its_own(tmp_path: Path):
    search = SearchSection(storage="sqlite:///all.db", study_name="all", workers=4)
    recipe = Recipe.model_construct(seed=7, search=search)
    run = Run("letters", recipe, tmp_path / "letters", runs=tmp_path)
    assert of_seed(run, 0) is run
    second = of_seed(run, 1)
    assert second.recipe.seed == 8
    assert second.root == tmp_path / "letters" / "seeds" / "8"
    assert second.recipe.search.workers == 1
    # A study of this seed: the recipe's own, in the shared storage, is of another.
    assert second.recipe.search.storage is second.recipe.search.study_name is None
    assert run.recipe.search == search
    assert run.recipe.seed == 7
    scores = second.stage("merge", {}, {}).all_runs, run.stage("merge", {}, {}).all_runs
    assert scores == (tmp_path, tmp_path)  # what is known of a model is known to all seeds


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, make_model)


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each stage was made, by its folder below `runs/tiny`."""
    return count_finished(monkeypatch, "runs/tiny")


def apart(values: dict[str, Any]) -> dict[str, Any]:
    """Sources whose groups, each named in full, go to one split each: no hash decides."""
    docs = values["data"]["sources"]["docs"]
    names = [f"docs/held{number}.txt" for number in range(8, 16)]
    docs["files"] = ["docs/*.txt"]
    docs["split"] = {
        "train": {"groups": [f"docs/train{number}.txt" for number in range(8)]},
        "validation": {"groups": names[:4]},
        "test": {"groups": names[4:]},
    }
    return values


HIDDEN = {**MOE, "router": "hidden", "prompts": [["a bank"], ["a cat"]]}
"""Made by a stage, and the same whatever the seed."""


@pytest.mark.parametrize("same", [False, True])
def test_what_the_seed_does_not_change_is_made_once(
    project: Path, finished: Counter[str], same: bool
):
    run = open_run(
        project, {"model": {"moe": HIDDEN}, "tokenizer": {"new_tokens": 4, "min_count": 2}}
    )
    for number in range(3):
        one = of_seed(run, number, same_documents=same)
        ensure_general(one)
        ensure_data(one)
    by_documents = {"general-extended", "data"}
    later = {f"seeds/{seed}/{name}" for seed in (4, 5) for name in by_documents if not same}
    assert finished == Counter(dict.fromkeys({"general", *by_documents} | later, 1))


def test_further_models_are_made_once_but_for_random_ones(project: Path, finished: Counter[str]):
    run = open_run(project, {"models": {"other": {"moe": HIDDEN}, "random": {"moe": MOE}}})
    for number in range(3):
        ensure_models(of_seed(run, number))
    names = [f"{folder}models/random/general" for folder in ("", "seeds/4/", "seeds/5/")]
    assert finished == Counter(dict.fromkeys([*names, "models/other/general"], 1))


@pytest.mark.parametrize("model", [{"moe": MOE}, {"path": "model"}])
def test_an_adapter_is_merged_into_the_general_model_of_its_seed(
    project: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
):
    bases: list[tuple[Path, Path]] = []

    def note(place: Run, _section: Any, general: Path, *_names: str) -> Path:
        bases.append((place.root, general))
        return place.root / "specialist"

    monkeypatch.setattr("toolkit.pipeline.models.merge_adapter", note)
    first = open_run(project, {"model": model})
    second = of_seed(first, 1)
    section = SpecialistSection(adapter="adapter")
    folder = ensure_finished(second, second, section, "specialist")
    maker = second if "moe" in model else first
    assert folder == maker.root / "specialist"
    assert bases == [(maker.root, ensure_general(maker))]


def test_seeds_on_the_same_documents_train_in_another_order(project: Path, finished: Counter[str]):
    run = open_run(project, {})
    folders = [ensure_cpt(of_seed(run, number, same_documents=True)) for number in range(2)]
    assert finished == {"data": 1, "cpt": 1, "seeds/4/cpt": 1}
    inputs = [load_json(folder / "manifest.json")["inputs"] for folder in folders]
    assert inputs[0] == inputs[1]
    assert content_hash(folders[0]) != content_hash(folders[1])


def test_a_split_by_names_is_shared_without_being_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    shared: list[bool] = []

    def make(run: Run) -> Path:
        shared.append(run.same_documents)
        run.root.mkdir(parents=True, exist_ok=True)
        (run.root / "report.json").write_text(json.dumps(make_values()))
        return run.root

    monkeypatch.setattr("toolkit.pipeline.stages.ensure_merge", make)
    run = open_run(project, {})
    run_repeat(run, 2)
    run_repeat(run, 2, same_documents=True)
    values = apart(recipe())
    values["data"]["sources"]["web"]["split"] = {"train": {"fraction": 1.0}}
    (project / "tiny.yaml").write_text(json.dumps(values))
    run_repeat(Run.open("tiny.yaml", Path("runs")), 2)
    assert shared == [False, False, False, True, False, True]  # the first run lends


def test_tokens_learned_for_a_model_of_each_seed_cannot_share_documents(project: Path):
    run = open_run(
        project,
        {"model": {"moe": MOE}, "tokenizer": {"new_tokens": 4, "min_count": 2}},
    )
    with pytest.raises(ConfigError, match="tokens of its own"):
        run_repeat(run, 2, same_documents=True)
