"""Healing: a specialist is drawn back to the general model, gated, resumable, undone where a round
gives back too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import ConfigError, EvaluationError
from toolkit.pipeline import heal as module
from toolkit.pipeline import own_conversations
from toolkit.pipeline.heal import HEALED, ensure_heal
from toolkit.pipeline.models import ensure_cpt, ensure_general
from toolkit.pipeline.own_conversations import ensure_conversations
from toolkit.pipeline.run import Run
from toolkit.stage import Stage, hash_folder, load_json, read_manifest
from toolkit.train.config import HealSection
from toolkit.train.heal import HealLook, heal_model
from toolkit.train.self_distillation import CONVERSATIONS, load_conversations
from toolkit.train.trainable import prepare_model

HEAL = {"source": "specialist", "num_tokens": 2000, "learning_rate": 1e-3, "give_back": 0.3}
FIGURES = ("manifest.json", HEALED)
"""They hold seconds and dates."""


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, make_model)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[HealLook]:
    """Looks that were taken: each finds general sets better than the one before, as those of a
    model that never learned anything cannot show."""
    truly, taken = module.Examiner._look, []

    def look(examiner: Any, losses: Any) -> HealLook:
        found = truly(examiner, losses)
        taken.append(HealLook(found.given_back, 1.0 / (1 + len(taken)), found.figures))
        return taken[-1]

    monkeypatch.setattr(module.Examiner, "_look", look)
    return taken


def run_with(project: Path, **values: Any) -> Run:
    return open_run(project, {"heal": {**HEAL, **values}})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("policy", ["on", "off"])
def test_it_nears_the_general_model_and_tells_what_it_cost(
    project: Path, looks: list[HealLook], policy: str, capsys: pytest.CaptureFixture[str]
):
    run = run_with(project, policy=policy)
    folder = ensure_heal(run)
    results, figures = read_manifest(folder)["results"], load_json(folder / HEALED)
    assert results["num_rounds"] == len(looks) - 1 >= 1
    assert figures["given_back"] == looks[-1].given_back <= HEAL["give_back"]
    domain = {name: one["domain"]["estimate"] for name, one in figures["models"].items()}
    assert domain["specialist"] < domain["merge"] < domain["general"]
    assert figures["test_scorings"] == 1
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert sum(row["tokens"] for row in rows) == results["num_tokens"]
    before = weights(ensure_cpt(run))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())
    assert not [*folder.glob("part-*"), *folder.glob("state-*")]
    capsys.readouterr()
    ensure_heal(run)
    module.show_healing(folder)
    said = capsys.readouterr().out
    assert "round 1" not in said
    assert "healed: " in said


def test_a_round_that_gives_back_too_much_is_undone(
    project: Path, looks: list[HealLook], monkeypatch: pytest.MonkeyPatch
):
    # A first healing ends by its tokens; the second takes one round more, and takes it back.
    first = ensure_heal(run_with(project, policy="off"))
    conversations = load_conversations(project / "runs/tiny/heal-conversations" / CONVERSATIONS)
    assert read_manifest(first)["results"]["num_rounds"] > 2
    truly, taken = module.Examiner._look, list(looks)
    looks.clear()

    def look(examiner: Any, losses: Any) -> HealLook:
        found = truly(examiner, losses)
        given_back = 0.31 if len(looks) == 3 else 0.0
        return HealLook(given_back, found.excess, found.figures)

    monkeypatch.setattr(module.Examiner, "_look", look)
    folder = ensure_heal(run_with(project, policy="off", give_back=0.301), score_test_again=True)
    results = read_manifest(folder)["results"]
    assert results["num_rounds"] == 1
    assert results["ending"] == "the next round gave back more than 30.1% of the domain gain"
    assert looks[1].figures == taken[1].figures  # the same round as in the first healing
    model = load_causal_model(folder, torch.float32)
    work = project / "once"
    work.mkdir()
    source = load_causal_model(project / "runs/tiny/cpt", torch.float32)
    section = HealSection.model_validate({**HEAL, "policy": "off"})
    one_round = next(module._cut_rounds(conversations, section.num_tokens))
    heal_model(
        prepare_model(source, section.as_training()),
        section,
        iter([one_round]),
        HealLook(0.0, 1.0, {}),
        lambda _: HealLook(0.0, 0.0, {}),
        seed=3,
        work=work,
    )
    for name, parameter in source.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name


def test_a_round_that_brings_nothing_is_undone(project: Path):
    folder = ensure_heal(run_with(project, policy="off", learning_rate=1e-12))
    results = read_manifest(folder)["results"]
    assert results["num_rounds"] == results["num_tokens"] == 0
    source = weights(project / "runs/tiny/cpt")
    assert all(torch.equal(tensor, source[name]) for name, tensor in weights(folder).items())


@pytest.mark.parametrize("policy", ["on", "off"])
def test_a_killed_healing_continues_to_the_same_bytes(
    project: Path, looks: list[HealLook], monkeypatch: pytest.MonkeyPatch, policy: str
):
    whole = hash_folder(ensure_heal(run_with(project, policy=policy)), leave_out=FIGURES)
    (project / "runs/tiny/heal").rename(project / "heal-before")
    looks.clear()
    truly = module.Examiner._look

    def killed(examiner: Any, losses: Any) -> HealLook:
        if len(looks) == 2:
            raise KeyboardInterrupt
        return truly(examiner, losses)

    with monkeypatch.context() as patch:
        patch.setattr(module.Examiner, "_look", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_heal(run_with(project, policy=policy))
    work = project / "runs/tiny/heal.partial"
    assert list(work.glob("state-*"))
    assert not (project / "runs/tiny/heal").exists()
    again = ensure_heal(run_with(project, policy=policy))
    assert hash_folder(again, leave_out=FIGURES) == whole


def test_one_that_was_killed_while_it_answered_answers_as_it_would_have(
    project: Path, looks: list[HealLook], monkeypatch: pytest.MonkeyPatch
):
    whole = hash_folder(ensure_heal(run_with(project, policy="on")), leave_out=FIGURES)
    (project / "runs/tiny/heal").rename(project / "heal-before")
    looks.clear()
    truly = own_conversations._write_block

    def killed(*given: Any) -> Any:
        if looks[1:]:  # the first round was kept
            raise KeyboardInterrupt
        return truly(*given)

    with monkeypatch.context() as patch:
        patch.setattr(own_conversations, "_write_block", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_heal(run_with(project, policy="on"))
    again = ensure_heal(run_with(project, policy="on"))
    assert hash_folder(again, leave_out=FIGURES) == whole


def test_a_model_without_a_gain_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.Examiner, "_change", lambda *_: 0.0)
    with pytest.raises(EvaluationError, match="no gain that healing could keep"):
        ensure_heal(run_with(project, policy="off"))


def test_another_healing_is_a_second_look(project: Path):
    ensure_heal(run_with(project, policy="off"))
    other = run_with(project, policy="off", learning_rate=5e-4)
    with pytest.raises(EvaluationError, match="--score-test-again"):
        ensure_heal(other)
    folder = ensure_heal(other, score_test_again=True)
    assert load_json(folder / HEALED)["test_scorings"] == 2


def test_a_recipe_without_the_section_says_what_to_write(project: Path):
    with pytest.raises(ConfigError, match="no section heal"):
        ensure_heal(open_run(project, {}))


def test_on_and_off_are_no_switches(project: Path):
    run = open_run(project, {"heal": {"policy": False}})  # as YAML reads a bare `off`
    assert run.recipe.heal is not None
    assert run.recipe.heal.policy == "off"
    assert HealSection.model_validate({"policy": True}).policy == "on"


def test_the_general_model_itself_has_nothing_to_learn(project: Path, tmp_path: Path):
    run = run_with(project, policy="off")
    general, section = ensure_general(run), run.recipe.heal
    assert section is not None
    stored = ensure_conversations(run, general, section.as_distillation(), "heal-conversations")
    work = tmp_path / "work"
    work.mkdir()
    heal_model(
        prepare_model(load_causal_model(general, torch.float32), section.as_training()),
        section.model_copy(update={"learning_rate": 1e-12}),
        iter([load_conversations(stored / CONVERSATIONS)[:4]]),
        HealLook(0.0, 2.0, {}),
        lambda _: HealLook(0.0, 0.0, {}),
        seed=1,
        work=work,
    )
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert all(abs(row["loss"]) < 1e-3 for row in rows)
    assert all(row["gradient_norm"] < 0.05 for row in rows)


def test_a_specialist_that_is_healed_is_scored_once():
    inputs = {"general": "a", "specialist": "b", "source": "b"}
    stage = Stage(Path("heal"), {}, inputs, 0)
    assert module._name_of("source", stage) == module._name_of("specialist", stage)
    assert module._name_of("general", stage) != module._name_of("source", stage)
    merged = Stage(Path("heal"), {}, {**inputs, "source": "c"}, 0)
    assert module._name_of("source", merged) != module._name_of("specialist", merged)
