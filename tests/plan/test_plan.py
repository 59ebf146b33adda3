"""`toolkit plan` on a tiny model and local documents: figures, files, and all that is bad."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.projects import recipe
from tests.helpers.shapes import LLAMA_3_70B
from tests.helpers.tiny_runs import make_project, open_run
from toolkit.checkpoint.config import shape_of_folder
from toolkit.cli import main
from toolkit.errors import ConfigError
from toolkit.pipeline.run import Run
from toolkit.plan import model as planning_model
from toolkit.plan import plan as planning
from toolkit.plan.devices import DEVICES, Fleet
from toolkit.plan.fit import misfits
from toolkit.plan.model import Located
from toolkit.plan.plan import PlanRequest, finish, make_plan, write_plan
from toolkit.plan.ready_recipe import write_recipe
from toolkit.plan.shape import count_parameters
from toolkit.recipe.load import load_recipe
from toolkit.recipe.model import shape_of


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    make_project(tmp_path, make_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning_model, "TIMED_SECONDS", 0.2)
    return tmp_path


def changed(**changes: Any) -> dict[str, Any]:
    values = recipe()
    for key, value in changes.items():
        part = values
        *path, last = key.split("__")
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    return values


def run_of(project: Path, values: dict[str, Any]):
    return open_run(project, values)


def quick(**more: Any) -> PlanRequest:
    return PlanRequest(measure=False, **more)


def planned(run: Run, request: PlanRequest) -> dict[str, Any]:
    """The values of `plan.json`."""
    return make_plan(run, request).as_json()


def test_a_whole_plan(project: Path):
    plan = planned(run_of(project, recipe()), PlanRequest(fleets=("8xH100", "CPU")))
    assert plan["problems"] == ()
    assert plan["model"]["parameters"] > 10_000
    right = plan["is_it_the_right_tool"]
    assert right["tool"] == "retrieval"  # a few hundred sentences
    # A random model reads both kinds alike: about log2(320) bits a token.
    assert right["bits_per_byte"]["domain"]["estimate"] > 1.0
    (docs, web) = plan["sources"]
    assert (docs["role"], docs["origin"], docs["documents_read"]) == ("domain", "counted", 16)
    assert web["read_whole"]
    (cpt, search) = plan["stages"]
    assert cpt["name"] == "cpt"
    assert cpt["seconds"] > 0.0
    assert cpt["flops"] == cpt["executed_flops"]
    assert search["steps"] == 0
    assert [row["devices"] for row in plan["memory"]] == ["8xH100", "CPU"]
    assert [bill["is_measured"] for bill in plan["bills"]] == [False, True]
    json.dumps(plan, allow_nan=False)


def test_amounts_are_those_of_the_data_stage(project: Path):
    from toolkit.pipeline.models import ensure_data
    from toolkit.stage import read_manifest

    run = run_of(project, changed(data__packing="concatenate"))
    plan = planned(run, quick())
    results = read_manifest(ensure_data(run))["results"]["train"]
    (cpt, _) = plan["stages"]
    assert cpt["domain_tokens"] == pytest.approx(results["domain_tokens"], rel=0.05)
    assert cpt["tokens"] == pytest.approx(
        results["domain_tokens"] + results["general_tokens"], rel=0.06
    )
    assert cpt["positions"] == pytest.approx(results["num_blocks"] * 64, rel=0.06)


@pytest.mark.parametrize("cut_to", [None, 16])
def test_what_sets_can_see_is_said_before_training(project: Path, cut_to: int | None):
    from toolkit.pipeline.models import ensure_data

    cut = {"data__evaluation_document_tokens": cut_to} if cut_to is not None else {}
    run = run_of(project, changed(select__general_tolerance=0.01, **cut))
    plan = planned(run, quick())
    rows = [
        json.loads(line)
        for line in (ensure_data(run) / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    seen = {one["name"]: one for one in plan["power"]}
    for name in ("docs", "web"):
        count = sum(row["id"].startswith(f"{name}/") for row in rows)
        assert seen[name]["num_items"] == pytest.approx(count, abs=1), name
    assert seen["docs"]["needed"] is None
    assert seen["web"]["needed"] > seen["web"]["num_groups"]
    assert "are needed" in seen["web"]["sentence"]
    assert any("scatters by" in line for line in plan["assumptions"])


def test_questions_say_how_many_a_tolerance_takes(project: Path):
    tasks = [{"task": "piqa", "role": "general"}, {"task": "sciq", "role": "watch"}]
    plan = planned(
        run_of(project, changed(evaluate__tasks=tasks, select__general_tolerance=0.01)), quick()
    )
    (note,) = [line for line in plan["notes"] if "right-or-wrong" in line]
    assert note.startswith("piqa: 268 right-or-wrong items")


def test_files_are_written_and_the_recipe_is_ready(project: Path):
    run = run_of(project, recipe())
    plan = make_plan(run, quick())
    path = write_plan(run, plan)
    assert json.loads(path.read_text()) == json.loads(json.dumps(plan.as_json()))
    page = path.with_suffix(".html").read_text()
    assert "Is it the right tool?" in page
    before = run.path.read_bytes()
    write_recipe(run, plan, project / "ready.yaml")
    text = (project / "ready.yaml").read_text()
    assert "Ibrahim et al. 2024" in text
    made = load_recipe(project / "ready.yaml")
    assert made.data.replay_fraction == next(
        setting.value for setting in plan.settings if setting.key == "data.replay_fraction"
    )
    assert made.data.sources == run.recipe.data.sources
    assert run.path.read_bytes() == before
    assert sorted(p.name for p in project.glob("*.yaml")) == ["ready.yaml", "tiny.yaml"]
    with pytest.raises(ConfigError, match="is there already"):
        write_recipe(run, plan, project / "ready.yaml")


def test_duplicates_are_counted_out(project: Path):
    text = (project / "docs" / "train0.txt").read_text()
    for number in range(8):
        (project / "docs" / f"train-copy{number}.txt").write_text(text)
    plan = planned(run_of(project, recipe()), quick())
    assert plan["is_it_the_right_tool"]["duplicate_fraction"] == pytest.approx(0.5, abs=0.05)


def hub_recipe(**changes: Any) -> dict[str, Any]:
    shape = LLAMA_3_70B.model_dump(exclude_none=True)
    model = {"hub": "meta-llama/Meta-Llama-3-70B-Instruct", "shape": shape}
    return changed(model=model, **changes)


def test_a_70b_of_the_hub_is_planned_without_it(project: Path):
    plan = planned(run_of(project, hub_recipe()), quick(fleets=("64xH100",)))
    assert plan["problems"] == ()
    assert round(plan["model"]["parameters"] / 1e9, 1) == 70.6
    assert not plan["model"]["is_here"]
    assert plan["from_scratch"]["tokens"] == 15e12
    assert any("not on this machine" in note for note in plan["notes"])
    assert plan["is_it_the_right_tool"]["shift"] == "not measured"


def test_a_model_that_does_not_fit_is_a_problem_with_a_way_out(project: Path):
    plan = make_plan(run_of(project, hub_recipe()), quick(fleets=("1xH100",)))
    (problem,) = plan.problems
    assert "does not fit H100" in problem
    assert "the largest part: optimizer" in problem
    assert "xH100 with FSDP" in problem
    with pytest.raises(ConfigError, match="found what would stop it"):
        finish(plan)


def test_fine_tuning_that_does_not_fit_is_told_too(project: Path):
    talks = changed()["data"]
    values = changed(sft={"data": talks, "train": {"micro_batch_size": 400_000}})
    plan = planned(run_of(project, values), quick(fleets=("L40S",)))
    (problem,) = plan["problems"]
    assert problem.startswith("sft.train: tiny does not fit L40S")
    assert "micro_batch_size: 1" in problem


def test_more_devices_than_blocks_of_a_step_are_noted(project: Path):
    run = run_of(project, changed(train__global_batch_size=4, train__micro_batch_size=1))
    plan = planned(run, quick(fleets=("4xH100", "8xH100")))
    (note,) = [line for line in plan["notes"] if "global_batch_size" in line]
    assert note.startswith("8xH100: training does not start on more devices than a step has")


def test_adapters_are_suggested_where_only_they_fit(project: Path):
    plan = planned(
        run_of(project, hub_recipe(data__sequence_length=512)), quick(fleets=("8xB200",))
    )
    assert plan["problems"] or plan["memory"][0]["ways"][0]["fits"]
    plan = planned(
        run_of(project, hub_recipe(data__sequence_length=512)), quick(fleets=("8xA100",))
    )
    assert "LoRA" in plan["problems"][0]
    lora = [s for s in plan["settings"] if s["key"] == "train.lora"]
    assert lora[0]["value"] == {"rank": 256}


def test_a_stage_longer_than_its_text(project: Path):
    stages = [{"name": "long", "tokens": 400_000, "mixture": {"docs": 0.5, "web": 0.5}}]
    plan = planned(run_of(project, changed(data__stages=stages)), quick())
    (problem,) = plan["problems"]
    assert problem.startswith("data.stages.0.mixture.docs: 200,000 tokens would repeat its about")
    assert plan["stages"] == ()


def test_replay_that_runs_out(project: Path):
    (project / "web.jsonl").write_text('{"text": "a cat sat on the mat and slept well"}\n')
    plan = planned(run_of(project, changed(data__replay_fraction=0.5)), quick())
    assert any(p.startswith("data.replay_fraction: 0.5 of the") for p in plan["problems"])


def test_documents_that_cannot_be_read_do_not_hide_the_rest(project: Path):
    (project / "web.jsonl").write_text('{"text": \n')
    values = changed()
    values["data"]["sources"]["docs"]["files"] = ["none/*.txt"]
    plan = planned(run_of(project, values), quick())
    missing, damaged = plan["problems"]
    assert "none/*.txt: no such file" in missing
    assert "web.jsonl" in damaged
    assert plan["memory"]


def test_a_hub_source_that_is_out_of_reach_is_said(project: Path):
    values = changed()
    source = values["data"]["sources"]["docs"]
    del source["files"]
    source["hub"] = {"dataset": "org/filings"}
    plan = planned(run_of(project, values), quick())
    assert any("org/filings" in note for note in plan["notes"])
    assert plan["stages"] == ()
    source["tokens"] = 2_000_000_000  # the recipe knows
    plan = planned(run_of(project, values), quick())
    assert plan["problems"][0].startswith("data.replay_fraction")  # 24 rows cannot be its replay
    values["data"]["sources"]["web"]["tokens"] = 1_000_000_000
    plan = planned(run_of(project, values), quick())
    assert plan["stages"][0]["domain_tokens"] == 2e9
    assert plan["is_it_the_right_tool"]["tool"] == "cpt"


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str):
    monkeypatch.setattr(sys, "argv", ["toolkit", *words])
    try:
        main.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("--devices", "8xH10"), "did you mean H100?"),
        (("--price", "H1000=2"), "did you mean H100?"),
        (("--utilization", "1.5"), "--utilization: must be above 0 and at most 1 (got 1.5)"),
        (("--prices", "none.yaml"), "none.yaml: cannot be read"),
        (("--pretrained-on", "-1"), "--pretrained-on: must be tokens, above 0 (got -1)"),
        (("--write", "tiny.yaml"), "--write tiny.yaml: is there already"),
        (("--write", "ready.json"), "--write ready.json: must end in .yaml"),
        (("--devices", "0xH100"), "--devices: must be like 8xH100"),
        (("--price", "H100=free"), "--price: H100: must be a number, not below 0 (got 'free')"),
    ],
)
def test_bad_flags(project: Path, capsys, monkeypatch, words, shown):
    (project / "tiny.yaml").write_text(yaml.safe_dump(recipe()))
    code, _, error = run(capsys, monkeypatch, "plan", "tiny.yaml", "--no-measure", *words)
    assert code == 2
    assert shown in error
    assert not (project / "runs").exists()


def test_the_command(project: Path, capsys, monkeypatch):
    (project / "tiny.yaml").write_text(yaml.safe_dump(recipe()))
    words = ("plan", "tiny.yaml", "--no-measure", "--write", "more/ready.yaml", "--price", "H100=9")
    code, out, _ = run(capsys, monkeypatch, *words)
    assert code == 0
    for part in (
        "1. Is it the right tool?",
        "2. What will it take?",
        "3. Which settings?",
        "$9.00/h",
    ):
        assert part in out
    load_recipe(project / "more" / "ready.yaml")
    assert (project / "runs" / "tiny" / "plan.json").is_file()


def test_the_command_ends_with_what_would_stop_it(project: Path, capsys, monkeypatch):
    (project / "tiny.yaml").write_text(yaml.safe_dump(hub_recipe()))
    code, out, error = run(
        capsys, monkeypatch, "plan", "tiny.yaml", "--no-measure", "--devices", "L40S"
    )
    assert code == 2
    assert "3. Which settings?" in out  # everything is shown all the same
    assert "does not fit L40S" in error


def test_the_table_of_devices_is_not_changed_by_a_plan(project: Path):
    before = dict(DEVICES)
    make_plan(run_of(project, recipe()), quick(utilization=0.9))
    assert before == DEVICES


def test_the_verdict_is_on_what_there_is_and_the_cost_on_what_is_taken(project: Path):
    values = changed()
    values["data"]["sources"]["docs"]["split"]["train"]["max_tokens"] = 500
    plan = planned(run_of(project, values), quick())
    (docs, _) = plan["sources"]
    assert docs["tokens"] == 500
    assert docs["available"] > 2000
    assert plan["stages"][0]["domain_tokens"] == 500
    right = plan["is_it_the_right_tool"]
    assert right["evidence"]["tokens"] == docs["available"]
    assert "the recipe takes 500 of them" in right["reasons"][0]


def late(**changes: Any) -> dict[str, Any]:
    """A recipe whose model nothing is known of when it is read."""
    values = changed(model={"hub": "org/unknown"}, **changes)
    values["data"]["sources"]["docs"]["fim"] = True
    return values


def test_what_only_the_model_tells_is_found_when_it_is_located(project: Path):
    values = late(data__sequence_length=512, data__end_of_document="<|none|>")
    run = run_of(project, values)
    folder = project / "model"
    found = planning._late_faults(run, Located(shape_of_folder(folder), folder))
    assert [fault.partition(":")[0] for fault in found] == [
        "data.sequence_length", "data.end_of_document", "data.fim.tokens"
    ]  # fmt: skip
    assert planning._late_faults(run, Located()) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data__sequence_length", 512, "data.sequence_length: must be at most 256"),
        ("data__end_of_document", "<|none|>", "has no token '<|none|>'"),
        (
            "data__stages",
            [{"name": "s", "tokens": 100, "mixture": {"docs": 0.5, "web": 0.4}}],
            "data.stages.0.mixture: must add up to 1",
        ),
    ],
)
def test_the_command_shows_the_faults_of_a_recipe(project, capsys, monkeypatch, key, value, words):
    (project / "tiny.yaml").write_text(yaml.safe_dump(changed(**{key: value})))
    code, _, error = run(capsys, monkeypatch, "plan", "tiny.yaml", "--no-measure")
    assert code == 2
    assert words in error


def test_a_layered_recipe_is_written_flat(project: Path):
    values = changed(variants={"long": {"train": {"epochs": 3}}})
    (project / "tiny.yaml").write_text(yaml.safe_dump(values))
    layered = Run.open("tiny.yaml@long", Path("runs"))
    write_recipe(layered, make_plan(layered, quick()), project / "ready.yaml")
    assert "variants" not in (project / "ready.yaml").read_text()
    assert load_recipe(project / "ready.yaml").train.epochs == 1  # few tokens: see them once
    assert layered.recipe.train.epochs == 3


def test_the_specialist_of_another_recipe_before_it_is_trained(project: Path):
    run_of(project, recipe())
    (project / "next.yaml").write_text(yaml.safe_dump(changed(model={"run": "tiny.yaml"})))
    plan = planned(Run.open("next.yaml", Path("runs")), quick())
    assert plan["model"]["is_here"]
    assert any("is not trained yet" in note for note in plan["notes"])


def test_a_mixture_and_a_model_from_scratch_before_they_are_made(project: Path):
    mixture = {"moe": {"base": {"path": "model"}, "num_experts": 4}}
    plan = planned(run_of(project, changed(model=mixture)), PlanRequest())
    dense = shape_of_folder(project / "model")
    expert = 3 * dense.hidden_size * dense.intermediate_size
    router = 4 * dense.hidden_size
    more = dense.num_hidden_layers * (3 * expert + router)
    assert plan["model"]["parameters"] == count_parameters(dense).total + more
    assert plan["model"]["active_parameters"] < plan["model"]["parameters"]
    assert plan["sources"][0]["origin"] == "counted"
    assert plan["machine"]["training_tokens_per_second"] is None
    assert plan["machine"]["flops_per_second"] > 0.0  # products of its shapes
    shape = dense.model_dump(exclude_none=True)
    first = {"scratch": {"shape": shape, "tokenizer": {"path": "model"}}}
    plan = planned(run_of(project, changed(model=first)), quick())
    assert any("begins from random weights" in note for note in plan["notes"])
    assert not (project / "runs" / "tiny" / "general").exists()


RECIPES = Path(__file__).parents[2] / "recipes"
PUBLISHED = sorted(
    path for path in RECIPES.glob("*.yaml") if load_recipe(path).model.artifact is None
)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_systems_at_full_size_fit_a_cluster_or_say_what_is_in_the_way(path: Path):
    recipe = load_recipe(path)
    shape = shape_of(recipe.model)
    assert shape is not None
    known = sorted(DEVICES.values(), key=lambda device: device.memory_bytes)
    found = misfits(recipe, shape, [Fleet(64, DEVICES["H100"])], known, path.stem, None)
    if path.stem != "composer2":
        assert found == []
        return
    # Blocks of 256k tokens on one device: no number of any helps.
    assert found[0].startswith("train: composer2 does not fit 64xH100")
    assert "none of the devices known, however many: shorter blocks" in found[0]
