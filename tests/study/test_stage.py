"""A study from its recipe to its table, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.conftest import paragraph
from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project
from toolkit.errors import ConfigError, EvaluationError
from toolkit.pipeline.models import ensure_data
from toolkit.pipeline.run import Run
from toolkit.study import stage as module
from toolkit.study.stage import StudySubject, ensure_study, score_subjects, write_tables


def claim(of: Any, against: Any, **measure: Any) -> dict[str, Any]:
    return {
        "claim": "what was published of this",
        "source": "2403.08763",
        "mark": "S",
        "measure": {"of": of, "against": against, **measure},
    }


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Path]
) -> Path:
    make_project(tmp_path, make_model)
    for number in range(16, 48):  # enough for intervals of six claims together
        (tmp_path / f"docs/held{number}.txt").write_text(paragraph(number, sentences=20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def study(folder: Path, claims: list[dict[str, Any]], **more: Any) -> Run:
    values = recipe(
        study={"claims": claims},
        variants={
            "none": {"data": {"replay_fraction": 0.0}},
            "much": {"data": {"replay_fraction": 0.4}},
        },
        scales={"small": {"train": {"save_steps": 3}}},
        **more,
    )
    values["train"]["forgetting_monitor"] = {"evaluations": 0}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return Run.open("tiny.yaml@small")


def test_from_recipe_to_table(project: Path, capsys: pytest.CaptureFixture[str]):
    claims = [
        claim("none", "general"),
        claim("none", "general", test_set="docs", unit="relative"),
        claim("general", "none", expect="lower"),
        claim("much", "none", test_set="general"),
        claim("none", "general", test_set="retention", expect="higher"),
        claim(["general", "none"], ["general", "none"], expect="equal", within=1e-9),
    ]
    folder = ensure_study(study(project, claims))
    assert folder == Path("runs/tiny@small/study")
    found = json.loads((folder / "study.json").read_text())
    verdicts = [one["verdict"] for one in found["claims"]]
    assert verdicts[0] == verdicts[1] == "agrees"  # eight documents of a small language are learned
    assert verdicts[2] == "disagrees"  # and the same claim turned round is refuted
    assert verdicts[5] == "agrees"
    first, relative = found["claims"][0]["interval"], found["claims"][1]["interval"]
    losses = found["figures"]["domain"]["models"]
    assert first["estimate"] == pytest.approx(losses["none"] - losses["general"])
    assert relative["estimate"] == pytest.approx(losses["none"] / losses["general"] - 1.0)
    assert found["figures"]["docs"]["models"] == pytest.approx(losses)
    assert found["figures"]["retention"]["unit"] == "nats per token"
    assert (project / "runs/tiny@none@small/cpt/manifest.json").is_file()
    assert not (project / "runs/tiny@small/cpt").exists()  # no claim asks for it

    written = (folder / "manifest.json").stat().st_mtime_ns
    assert ensure_study(study(project, claims)) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    capsys.readouterr()
    ensure_study(study(project, claims[:1]))
    assert "runs anew" in capsys.readouterr().out

    page = project / "docs/systems.md"
    write_tables([folder / "study.json"], page)
    first_page = page.read_text()
    assert "toolkit study run tiny@small" in first_page
    assert first_page.count("**agrees**") == 1
    write_tables([folder], page)
    assert page.read_text() == first_page


def test_merge_and_share(project: Path):
    claims = [
        claim("merge", "general", fraction_of="cpt", unit="fraction", expect="higher", than=-5.0),
        claim("merge", "general"),
    ]
    more = {"search": {"merges": ["linear"], "sweep": [0.5]}}
    found = json.loads((ensure_study(study(project, claims, **more)) / "study.json").read_text())
    losses = found["figures"]["domain"]["models"]
    share = (losses["general"] - losses["merge"]) / (losses["general"] - losses["cpt"])
    assert found["claims"][0]["interval"]["estimate"] == pytest.approx(share)


def test_what_cannot_be_studied(project: Path):
    with pytest.raises(ConfigError, match="there is no test set 'webs'; did you mean web"):
        study(project, [claim("none", "general", test_set="webs")])
    with pytest.raises(ConfigError, match=r"infilling needs a section evaluate\.infilling"):
        study(project, [claim("none", "general", test_set="infilling")])
    with pytest.raises(ConfigError, match=r"study\.claims\.0\.measure: there is no variant 'nine'"):
        study(project, [claim("nine", "general")])
    study(project, [claim("none", "much")])
    values = yaml.safe_load((project / "tiny.yaml").read_text())
    docs = values["data"]["sources"]["docs"]
    rules = {**docs["split"], "test": {"groups": ["held*"], "fraction": 0.2}}
    values["variants"]["much"]["data"] = {"sources": {"docs": {**docs, "split": rules}}}
    (project / "tiny.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(EvaluationError, match="its test documents are not those of"):
        ensure_study(Run.open("tiny.yaml@small"))


def test_without_claims(project: Path):
    (project / "tiny.yaml").write_text(yaml.safe_dump(recipe()))
    with pytest.raises(ConfigError, match="has no section study"):
        ensure_study(Run.open("tiny.yaml"))
    with pytest.raises(ConfigError, match="there is no study"):
        write_tables([], project / "page.md")


def write_prompts(path: Path, words: str) -> None:
    path.write_text("".join(json.dumps({"prompt": f"{words} {n}"}) + "\n" for n in range(40)))


def test_prompts_of_the_users_own_are_inputs_and_what_is_not_measured_is_not_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("toolkit.evaluate.load._behavior", None)  # would fail if it were called
    write_prompts(project / "own.jsonl", "the bank")
    evaluate = {**recipe()["evaluate"], "behavior": {}}
    evaluate["retention"] = {"files": ["own.jsonl"], "num_prompts": 8, "max_new_tokens": 8}
    claims = [claim("general", "general", test_set="retention", expect="equal", within=0.1)]
    folder = ensure_study(study(project, claims, evaluate=evaluate))
    written = (folder / "manifest.json").read_bytes()
    ensure_study(study(project, claims, evaluate=evaluate))
    assert (folder / "manifest.json").read_bytes() == written
    write_prompts(project / "own.jsonl", "the board")
    capsys.readouterr()
    ensure_study(study(project, claims, evaluate=evaluate))
    assert "prompts/own.jsonl" in capsys.readouterr().out


def test_models_of_two_types_are_scored_in_one(project: Path, monkeypatch: pytest.MonkeyPatch):
    run = study(project, [claim("general", "general")])
    low = AutoModelForCausalLM.from_pretrained(project / "model", dtype=torch.bfloat16)
    (project / "low").mkdir()
    for path in (project / "model").glob("*token*"):
        (project / "low" / path.name).write_bytes(path.read_bytes())
    low.save_pretrained(project / "low")
    loaded = []
    load = module.dtype_of

    def note(precision: str) -> torch.dtype:
        loaded.append(precision)
        return load(precision)

    monkeypatch.setattr(module, "dtype_of", note)
    subjects = [
        StudySubject(name, run, "general", project / folder)
        for name, folder in (("general", "model"), ("other", "low"))
    ]
    score_subjects(run, subjects, ensure_data(run), ["domain"])
    assert loaded == ["fp32", "fp32"]
