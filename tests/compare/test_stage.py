"""A comparison from its file to its page, on tiny models: what is shared, resumed and said."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import paragraph
from tests.helpers.projects import recipe, toolkit
from tests.helpers.tiny_runs import count_finished, make_project
from toolkit.compare.stage import ensure_comparison, read_comparison
from toolkit.compare.ways import open_comparison, runs_of_ways
from toolkit.errors import ConfigError, EvaluationError
from toolkit.pipeline.models import ensure_cpt
from toolkit.pipeline.run import Run
from toolkit.search.candidate_scorer import Bench
from toolkit.section import replace_values
from toolkit.select.results import MergeResults, read_results
from toolkit.stage import load_json, read_manifest

SLOW = {"recipe": {"train": {"schedule": {"peak_lr": 1e-3}}}, "merges": ["none"]}
WAYS: dict[str, Any] = {
    "reference": "plain-recipe",
    "alphas": [0.5],
    "ways": {
        "plain-recipe": {},
        "slow": SLOW,
        "ties": {"recipe": {"search": {"merges": ["ties"]}}, "merges": ["search"]},
    },
}

UNMERGED: dict[str, Any] = {**WAYS, "merges": ["none"], "ways": {"plain-recipe": {}, "slow": SLOW}}
"""The same without a search, which takes longest."""

SPLIT = {
    "train": {"groups": ["train*"]},
    "validation": {"groups": ["held*"], "fraction": 0.8},
    "test": {"groups": ["held*"], "fraction": 0.2},
}
SPLIT_ANEW = {
    "data": {"sources": {"docs": {**recipe()["data"]["sources"]["docs"], "split": SPLIT}}}
}
"""A way that would be tested on other documents."""


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    make_project(tmp_path, make_model)
    for number in range(16, 40):
        (tmp_path / f"docs/held{number}.txt").write_text(paragraph(number, sentences=20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each stage was made, by its folder below `runs/tiny`."""
    return count_finished(monkeypatch, "runs/tiny")


def open_tiny(**changes: Any) -> Run:
    values = recipe(
        search={"merges": ["linear"], "sweep": [0.5], "num_trials": 4, "refine": 1},
        **changes,
    )
    values["evaluate"]["retention"] = {"num_prompts": 8, "loss_tolerance": 9.0}
    values["train"]["forgetting_monitor"] = {"evaluations": 0}
    Path("tiny.yaml").write_text(yaml.safe_dump(values))
    return Run.open("tiny.yaml", Path("runs"))


def write_ways(values: Mapping[str, Any] = WAYS, **changes: Any) -> str:
    Path("ways.yaml").write_text(yaml.safe_dump({**values, **changes}))
    return "ways.yaml"


def test_every_part_is_made_once_and_shared(
    project: Path, finished: Counter[str], capsys: pytest.CaptureFixture[str]
):
    folder = ensure_comparison(open_tiny(), write_ways(), num_seeds=2)
    assert folder == Path("runs/tiny/compare/ways")
    assert finished == dict.fromkeys(
        [
            "data",
            "cpt",
            "merge",
            "ways/slow/cpt",
            "ways/ties/merge",
            "seeds/4/cpt",
            "seeds/4/merge",
            "ways/slow/seeds/4/cpt",
            "ways/ties/seeds/4/merge",
            "compare/ways",
        ],
        1,
    )
    printed = capsys.readouterr().out
    assert "ties trains as plain-recipe does: they share one specialist" in printed
    assert "2 seeds, 4 specialists to train or to find" in printed
    results = read_comparison(folder)
    assert results.seeds == (3, 4)
    assert [one.title for one in results.figures] == [
        "plain-recipe",
        "plain-recipe + plain mean",
        "plain-recipe + search",
        "slow",
        "ties + search",
    ]
    whole = results.figures[0]
    assert whole.gain_kept is not None
    assert whole.gain_kept.estimate == pytest.approx(1.0)
    assert [point.alpha for point in results.line] == [0.5, 1.0]
    assert {one.name for one in results.sets} == {"docs", "web", "retention", "retention KL"}
    costs = results.ways[0].costs
    of_seeds = [read_manifest(Path(f"runs/tiny/{one}cpt"))["results"] for one in ("", "seeds/4/")]
    assert costs.trained_tokens == fmean(one["num_targets"] for one in of_seeds)
    assert costs.searched_tokens
    assert results.ways[2].trains_as == "plain-recipe"
    page = (folder / "compare.html").read_text()
    assert "plain-recipe + plain mean" in page
    assert page.count('class="plot') == len(results.lines())

    finished.clear()
    assert ensure_comparison(open_tiny(), write_ways(), num_seeds=2) == folder
    assert finished == {}


def test_figures_are_those_of_the_merge_stage(project: Path, monkeypatch: pytest.MonkeyPatch):
    results = read_comparison(ensure_comparison(open_tiny(), write_ways(), num_seeds=1))
    report = load_json(Path("runs/tiny/merge/report.json"))
    searched = next(one for one in results.figures if one.title == "plain-recipe + search")
    assert searched.seeds["3"].candidate == report["chosen"]
    merge = report["models"]["merge"]
    assert searched.domain_change.estimate == pytest.approx(merge["domain_change"]["estimate"])
    for name, standing in searched.sets.items():
        change = merge["set_changes"][name]
        assert standing.change.estimate == pytest.approx(change["estimate"])
        assert standing.change.high == pytest.approx(change["high"], rel=1e-6)
    assert any("One seed" in remark for remark in results.remarks)
    entries = load_json(Path("runs/tiny/test-ledger.json"))["scorings"]
    assert [entry["name"] for entry in entries] == [
        report["chosen"],
        "toolkit compare, ways: plain-recipe, plain-recipe + plain mean, plain-recipe + search, "
        "general, line α=0.5",
    ]
    assert results.test_scorings == 2

    def rename(folder: Path) -> MergeResults:
        """As if another method had been chosen, whose merge stands in the folder alone."""
        return replace_values(read_results(folder), chosen="learned", any_merge=True)

    monkeypatch.setattr("toolkit.compare.stage.read_results", rename)
    results = read_comparison(ensure_comparison(open_tiny(), write_ways(), num_seeds=1))
    stored = next(one for one in results.figures if one.title == "plain-recipe + search")
    assert stored.seeds["3"].candidate == "learned"
    assert stored.domain_change.estimate == pytest.approx(merge["domain_change"]["estimate"])


def test_a_comparison_that_is_stopped_goes_on(
    project: Path, finished: Counter[str], monkeypatch: pytest.MonkeyPatch
):
    scored: list[str] = []
    score = Bench.score

    def stop(bench: Bench, candidate: Any, items: Any, *more: Any) -> list[float]:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(f"{candidate.name} {items.name}")
        return score(bench, candidate, items, *more)

    run, ways = open_tiny(), write_ways(UNMERGED)
    for one in runs_of_ways(run, open_comparison(run, ways), 0).values():
        ensure_cpt(one)
    finished.clear()
    monkeypatch.setattr(Bench, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_comparison(run, ways, num_seeds=1)
    assert finished == {}
    assert Path("runs/tiny/compare/ways.partial").is_dir()
    before = list(scored)
    scored.clear()

    def go_on(bench: Bench, candidate: Any, items: Any, *more: Any) -> list[float]:
        scored.append(f"{candidate.name} {items.name}")
        return score(bench, candidate, items, *more)

    monkeypatch.setattr(Bench, "score", go_on)
    ensure_comparison(run, ways, num_seeds=1)
    assert finished == {"compare/ways": 1}
    assert not list(Path("runs/tiny/compare/ways").glob("scores-*"))
    assert len(before) == 3
    scored_again = len(scored)
    scored.clear()
    ensure_comparison(run, ways, num_seeds=1)
    assert scored_again
    assert scored == []


def test_finished_stages_of_other_runs_serve_and_stay_as_they_are(
    project: Path, finished: Counter[str]
):
    ensure_comparison(open_tiny(), write_ways(UNMERGED), num_seeds=1)
    shutil.move("runs", "elsewhere")
    before = {p: p.stat().st_mtime_ns for p in Path("elsewhere").rglob("*") if p.is_file()}
    finished.clear()
    ensure_comparison(open_tiny(), write_ways(UNMERGED), num_seeds=1, reuse=Path("elsewhere"))
    assert finished == {"compare/ways": 1}
    assert {p: p.stat().st_mtime_ns for p in Path("elsewhere").rglob("*") if p.is_file()} == before
    with pytest.raises(ConfigError, match=r"--reuse docs: holds no complete stage of tiny"):
        ensure_comparison(open_tiny(), write_ways(), num_seeds=1, reuse=Path("docs"))


def test_a_way_that_is_tested_on_other_documents_is_refused_before_training(
    project: Path, finished: Counter[str]
):
    ways = write_ways(ways={"plain-recipe": {}, "other": {"recipe": SPLIT_ANEW}})
    with pytest.raises(EvaluationError, match=r"ways\.other: its test documents are not those of"):
        ensure_comparison(open_tiny(), ways, num_seeds=1)
    assert "cpt" not in finished


def test_a_finished_specialist_is_compared_by_its_merges(project: Path, finished: Counter[str]):
    shutil.copytree(ensure_cpt(open_tiny()), "specialist")
    finished.clear()
    values = recipe()["data"]
    for source in values["sources"].values():
        del source["split"]
    values["sources"]["docs"]["files"] = ["docs/held*.txt"]
    values["cleaning"] = {**values["cleaning"]}
    run = open_finished(values)
    two = {"plain-recipe": {}, "ties": WAYS["ways"]["ties"]}
    results = read_comparison(ensure_comparison(run, write_ways(ways=two), num_seeds=1))
    assert not any(name.endswith("cpt") for name in finished)
    assert results.ways[0].costs.trained_tokens is None
    assert results.ways[1].trains_as is None
    with pytest.raises(ConfigError) as caught:
        ensure_comparison(run, write_ways(), num_seeds=1)
    assert str(caught.value).splitlines()[1:] == [
        "  ways.slow.recipe.train: the recipe names a finished specialist, so nothing is trained; "
        "ways of it differ in search, select and heal alone"
    ]


def test_a_healed_model_is_compared_as_it_stands(project: Path, monkeypatch: pytest.MonkeyPatch):
    def heal(run: Run, **_: Any) -> Path:
        """All the way back: the general model."""
        folder = run.root / "heal"
        shutil.copytree("model", folder)
        (folder / "heal.json").write_text('{"num_tokens": 7, "seconds": 2.0}')
        return folder

    monkeypatch.setattr("toolkit.compare.stage.ensure_heal", heal)
    healed = {"recipe": {"heal": {"source": "specialist"}}, "merges": ["heal"]}
    ways = write_ways(UNMERGED, ways={"plain-recipe": {}, "healed": healed})
    results = read_comparison(ensure_comparison(open_tiny(), ways, num_seeds=1))
    found = results.figures[1]
    assert found.title == "healed + heal"
    assert found.domain_change.estimate == pytest.approx(0.0, abs=1e-6)
    assert found.seeds["3"].candidate == "healed"
    assert results.ways[1].costs.healed_tokens == 7.0
    assert results.ways[1].trains_as == "plain-recipe"


def open_finished(data: dict[str, Any]) -> Run:
    values = recipe(data=data, specialist={"path": "specialist"})
    del values["train"]
    values["search"] = {"merges": ["linear"], "sweep": [0.5], "num_trials": 4, "refine": 1}
    values["evaluate"]["retention"] = {"num_prompts": 8, "loss_tolerance": 9.0}
    Path("tiny.yaml").write_text(yaml.safe_dump(values))
    return Run.open("tiny.yaml", Path("runs"))


def test_later_seeds_stand_below_and_share_across_ways(project: Path):
    run = open_tiny()
    runs = runs_of_ways(run, open_comparison(run, write_ways()), 1, [Path("other/tiny")])
    roots = {name: one.root for name, one in runs.items()}
    assert roots == {
        "plain-recipe": Path("runs/tiny/seeds/4"),
        "slow": Path("runs/tiny/ways/slow/seeds/4"),
        "ties": Path("runs/tiny/ways/ties/seeds/4"),
    }
    assert runs["slow"].recipe.seed == 4
    assert runs["slow"].also == (
        roots["plain-recipe"],
        roots["ties"],
        Path("other/tiny/seeds/4"),
    )
    assert runs["slow"].lender is not None
    assert runs["slow"].lender.root == Path("runs/tiny/ways/slow")


def test_one_seed_and_one_kind_of_measure_are_warned_of(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("toolkit.errors._SAID", set())
    ways = write_ways(UNMERGED, ways={"plain-recipe": {}, "wrong": {"recipe": SPLIT_ANEW}})
    with pytest.raises(EvaluationError):  # before anything is trained
        ensure_comparison(open_tiny(), ways, num_seeds=1)
    told = capsys.readouterr().err
    assert "warning: one seed: what another seed would change is not known" in told
    assert "warning: retention: one kind of general measure, which a way may fit" in told
    questions = {"name": "own", "files": ["own.jsonl"], "role": "general"}
    monkeypatch.setattr("toolkit.errors._SAID", set())
    ways = write_ways(
        UNMERGED,
        ways={"plain-recipe": {}, "wrong": {"recipe": SPLIT_ANEW}},
        evaluate={"multiple_choice": [questions]},
    )
    with pytest.raises(EvaluationError):
        ensure_comparison(open_tiny(), ways, num_seeds=2)
    assert "warning" not in capsys.readouterr().err


def test_the_command_names_what_it_looked_for(project: Path):
    open_tiny()
    done = toolkit(project, "compare", "tiny.yaml")
    assert done.returncode == 2
    assert "there is no file of ways 'tiny' in recipes/ways/ or in the package" in done.stderr


def test_models_are_scored_in_the_type_that_the_sets_are_of(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    dtypes = set()
    score = Bench.score

    def note(bench: Bench, *more: Any) -> list[float]:
        dtypes.add(bench._scored.dtype)
        return score(bench, *more)

    monkeypatch.setattr(Bench, "score", note)
    evaluate = {**recipe()["evaluate"], "precision": "bf16"}
    ways = write_ways(UNMERGED, evaluate={"precision": "fp32"})
    ensure_comparison(open_tiny(evaluate=evaluate), ways, num_seeds=1)
    assert dtypes == {torch.float32}
