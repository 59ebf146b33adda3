"""Merges on the processor they are scored on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import MergeError
from toolkit.evaluate.cache import ScoreCache
from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.candidate_scorer import Bench, device_of
from toolkit.search.space import alone, endpoint, sweep_point


def first_logits(model: Any, rows: Sequence[int]) -> list[float]:
    with torch.inference_mode():
        return [float(model(torch.tensor([[row, 1]])).logits[0, -1, 0]) for row in rows]


LOGITS = EvaluationSet(
    "logits", "domain", "loss", ["a", "b"], ["a", "b"], [1.0, 1.0], [2, 2], "x", first_logits
)


def test_a_copy_elsewhere_gets_every_merge(two_models: tuple[Path, Path]):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    here = Bench(folders, load_causal_model(two_models[0], torch.float32), seed=0)
    there = Bench(folders, load_causal_model(two_models[0], torch.float32), seed=0, copied=True)
    for candidate in (sweep_point(0.3), endpoint("specialist"), sweep_point(0.6)):
        for bench in (here, there):
            bench.apply(candidate.config)
        one, other = (bench.score(candidate, LOGITS, [0, 1]) for bench in (here, there))
        assert one == other
        assert here.distance() == there.distance()
    assert there._scored is not there._made
    assert here._scored is here._made


def test_a_score_is_kept_by_what_was_merged(two_models: tuple[Path, Path], tmp_path: Path):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    loaded = load_causal_model(two_models[0], torch.float32)
    cache = ScoreCache(tmp_path / "scores.jsonl")
    bench = Bench(folders, loaded, seed=0, cache=cache, parents={"general": "g", "specialist": "s"})
    bench.apply(sweep_point(0.3).config)
    first = bench.score(sweep_point(0.3), LOGITS, [0, 1])
    bench.apply(sweep_point(0.9).config)
    assert bench.score(sweep_point(0.3), LOGITS, [1, 0]) == first[::-1]  # not scored again
    assert bench.score(sweep_point(0.9), LOGITS, [0, 1]) != first


def test_a_model_as_it_stands_is_scored_once_for_all_seeds_and_partners(
    two_models: tuple[Path, Path], tmp_path: Path
):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    scored: list[int] = []

    def count(model: Any, rows: Sequence[int]) -> list[float]:
        scored.append(len(rows))
        return first_logits(model, rows)

    items = replace(LOGITS, score=count)
    for seed, specialist in ((0, "s"), (1, "s"), (1, "other")):
        loaded = load_causal_model(two_models[0], torch.float32)
        parents = {"general": "g", "specialist": specialist}
        cache = ScoreCache(tmp_path / "scores.jsonl")
        bench = Bench(folders, loaded, seed=seed, cache=cache, parents=parents)
        for candidate in (endpoint("general"), endpoint("specialist"), sweep_point(0.3)):
            bench.apply(candidate.config)
            bench.score(candidate, items, [0, 1])
    # general once, the two specialists once each, the merge for each seed and partner
    assert len(scored) == 1 + 2 + 3


def test_of_several_specialists_each_is_scored_once_as_it_stands(
    two_models: tuple[Path, Path], tmp_path: Path
):
    names = ("law", "news")
    folders = dict(zip(("general", *names), (*two_models, two_models[1]), strict=True))
    loaded = load_causal_model(two_models[0], torch.float32)
    cache, scored = ScoreCache(tmp_path / "scores.jsonl"), []

    def count(model: Any, rows: Sequence[int]) -> list[float]:
        scored.append(len(rows))
        return first_logits(model, rows)

    items = replace(LOGITS, score=count)
    for news in ("n", "another"):
        parents = {"general": "g", "law": "l", "news": news}
        bench = Bench(folders, loaded, seed=0, cache=cache, parents=parents)
        for candidate in (endpoint("general", names), endpoint("general"), alone("law")):
            if "specialist" not in candidate.config.model_names():
                bench.apply(candidate.config)
            bench.score(candidate, items, [0, 1])
    assert len(scored) == 2  # the general model, and law


def test_a_merge_that_is_no_finite_number_has_no_distance(
    two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    bench = Bench(folders, load_causal_model(two_models[0], torch.float32), seed=0)
    bench.apply(sweep_point(0.5).config)
    monkeypatch.setattr(bench._live, "distance", lambda *_: math.inf)
    with pytest.raises(MergeError, match="distance from the general model is inf"):
        bench.distance()


def test_a_pass_that_gives_two_sets_is_done_once_a_merge(two_models: tuple[Path, Path]):
    passes: list[list[int]] = []

    def both(model: Any, rows: Sequence[int]) -> dict[str, list[float]]:
        passes.append(list(rows))
        found = first_logits(model, rows)
        return {"logits": found, "twice": [2.0 * value for value in found]}

    one = replace(LOGITS, score_together=both)
    two = replace(one, name="twice", role="watch")
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    bench = Bench(folders, load_causal_model(two_models[0], torch.float32), seed=0)
    for share in (0.3, 0.6):
        bench.apply(sweep_point(share).config)
        single = bench.score(sweep_point(share), one, [1], [one, two])
        assert bench.score(sweep_point(share), two, [1], [one, two]) == [2.0 * single[0]]
        assert bench.score(sweep_point(share), two, [1, 0], [one, two])[0] == 2.0 * single[0]
        other = replace(two, content_hash="other items")
        bench.score(sweep_point(share), other, [1], [one, other])
    assert passes == [[1], [0], [1]] * 2


def test_the_way_is_measured_from_the_general_model(two_models: tuple[Path, Path]):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    bench = Bench(folders, load_causal_model(two_models[0], torch.float32), seed=0)
    way = {}
    for name, candidate in (
        ("general", endpoint("general")),
        ("half", sweep_point(0.5)),
        ("specialist", endpoint("specialist")),
    ):
        bench.apply(candidate.config)
        way[name] = bench.distance()
    assert way["general"] == 0.0
    assert abs(way["half"] / way["specialist"] - 0.5) < 1e-5
    assert bench.merge_seconds > 0.0


def test_workers_take_processors_in_turn(monkeypatch):
    assert device_of(3) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of(number).index for number in range(4)] == [0, 1, 0, 1]
