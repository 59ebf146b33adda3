"""Merges on the processor they are scored on."""

from __future__ import annotations

from pathlib import Path

import torch

from toolkit.checkpoint.load import load_causal_model
from toolkit.search.bench import Bench, device_of
from toolkit.search.space import endpoint, sweep_point


def test_a_copy_elsewhere_gets_every_merge(two_models: tuple[Path, Path]):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    here = Bench(folders, load_causal_model(two_models[0], torch.float32), seed=0)
    there = Bench(folders, load_causal_model(two_models[0], torch.float32), seed=0, copied=True)
    for candidate in (sweep_point(0.3), endpoint("specialist"), sweep_point(0.6)):
        for bench in (here, there):
            bench.apply(candidate.config)
        for one, other in zip(here.model.parameters(), there.model.parameters(), strict=True):
            assert torch.equal(one, other)
        assert here.distance() == there.distance()
    assert there.model is not here.model
    inputs = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(here.model(inputs).logits, there.model(inputs).logits)


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
