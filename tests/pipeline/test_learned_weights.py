"""Learned weights in a merge stage: a candidate like any other, kept for a run that continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.errors import ConfigError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge
from toolkit.pipeline import merge_search
from toolkit.pipeline.stages import ensure_merge
from toolkit.select.results import read_results

SEARCH = {
    "merges": ["linear"],
    "num_trials": 6,
    "sweep": [0.3, 0.6],
    "learned": {"steps": 3, "tokens_per_step": 128},
}


def test_they_are_a_candidate_like_any_other(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run = open_run(make_project(tmp_path, make_model), {"search": SEARCH})
    times: list[int] = []
    truly = merge_search.learn_profile

    def counted(*given: Any) -> Any:
        times.append(1)
        return truly(*given)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_search, "learn_profile", counted)
    with monkeypatch.context() as patch:
        patch.setattr("toolkit.pipeline.merge_stage.choose_candidate", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_merge(run)
    folder = ensure_merge(run)
    assert times == [1]  # a run that continues does not learn again
    names = {row.name for row in read_results(folder).candidates}
    assert "learned task_arithmetic" in names
    kept = json.loads((folder / "learned.json").read_text())
    weight = kept["config"]["models"][0]["parameters"]["weight"]
    assert [len(one["value"]) for one in weight[:-1]] == [2, 2, 2]  # kinds over the layers
    models = {"general": tmp_path / "model", "specialist": run.root / "cpt"}
    run_merge(parse_merge_config(kept["config"], where="x"), tmp_path / "again", folders=models)
    assert (tmp_path / "again/model.safetensors").is_file()


def test_several_specialists_are_refused_before_anything_is_learned(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, make_model)
    for number, name in enumerate(("one", "two")):
        make_model(tmp_path / name, seed=number + 5)
    docs = {"role": "domain", "files": ["docs/*.txt"], "specialist": "one"}
    web = {"role": "domain", "files": ["web.jsonl"], "specialist": "two"}
    specialists = {name: {"path": name} for name in ("one", "two")}
    data = {"sources": {"docs": docs, "web": web}}
    with pytest.raises(ConfigError, match=r"search\.learned: is for one specialist"):
        open_run(tmp_path, {"search": SEARCH, "specialists": specialists, "data": data})
