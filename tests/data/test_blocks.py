"""Blocks as training reads them: whole documents, apart, each target once, the same everywhere."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.token_blocks import make_blocks
from toolkit.data.blocks import IGNORED, Blocks
from toolkit.errors import ToolkitError


def test_worked_example(tmp_path: Path):
    # Separator 0. Documents of 3 and 1 tokens have 4 and 2 targets: one block of 6, one free place.
    blocks = make_blocks(tmp_path, {"a": [[5, 6, 7], [8]]}, 7)
    (stage,) = blocks.stages
    assert stage.num_positions == 1
    batch = stage.read([0])
    assert batch.input_ids.tolist() == [[0, 5, 6, 7, 0, 8, 0]]
    assert batch.labels.tolist() == [[5, 6, 7, 0, 8, 0, IGNORED]]
    assert batch.segments.tolist() == [[0, 0, 0, 0, 1, 1, -1]]
    assert batch.num_targets == stage.num_targets == 6


@pytest.mark.parametrize("method", ["best_fit", "concatenate"])
def test_no_token_is_lost_and_none_follows_another_document(tmp_path: Path, method: str):
    chance = np.random.default_rng(0)
    token, documents = 1, []
    for length in chance.integers(1, 60, size=80):
        documents.append(list(range(token, token + int(length))))
        token += int(length)
    blocks = make_blocks(tmp_path, {"a": documents}, 16, method=method)
    stage = blocks.stages[0]
    batch = stage.read(range(stage.num_positions))
    real = batch.labels != IGNORED
    targets = batch.labels[real]
    assert sorted(targets[targets > 0].tolist()) == list(range(1, token))
    assert int((targets == 0).sum()) == len(documents)
    inputs = batch.input_ids[real]
    last = {document[-1] for document in documents}
    for given, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        if target == 0:
            assert given in last
        elif given != 0:
            assert target == given + 1
    assert blocks.largest_token == token - 1


def test_reading_alone_or_together_makes_no_difference(tmp_path: Path):
    sources = {"a": [[n + 1] * 9 for n in range(40)], "b": [[n + 100] * 9 for n in range(40)]}
    stage = make_blocks(tmp_path, sources, 30, counts={"a": 20, "b": 5}, epochs=2).stages[0]
    assert stage.num_positions == 50
    everything = stage.read(range(50))
    for position in (0, 17, 49):
        alone = stage.read([position])
        assert (alone.input_ids[0] == everything.input_ids[position]).all()
    from_b = [bool(row.max() >= 100) for row in everything.input_ids]
    assert sum(from_b) == 10
    assert [stage.source_at(p) == "b" for p in range(50)] == from_b
    with pytest.raises(IndexError):
        stage.read([50])


def test_stages_have_their_own_length(tmp_path: Path):
    blocks = make_blocks(
        tmp_path, {"a": [[1] * 63 for _ in range(8)]}, stages=[("short", 16), ("long", 64)]
    )
    assert [(s.name, s.num_positions) for s in blocks.stages] == [("short", 32), ("long", 8)]
    assert blocks.stages[1].read([3]).labels.shape == (1, 64)


def test_position_one_million_is_read_at_once(tmp_path: Path):
    stage = make_blocks(
        tmp_path, {"a": [[n % 300] * 15 for n in range(5000)]}, 16, counts={"a": 2_000_000}
    ).stages[0]
    began = time.perf_counter()
    stage.read(range(1_000_000, 1_000_032))
    assert time.perf_counter() - began < 0.5


def test_a_missing_shard_is_named(tmp_path: Path):
    make_blocks(tmp_path, {"a": [[1, 2]]}, 8)
    (tmp_path / "tokens/a.npy").write_bytes(b"damaged")
    with pytest.raises(ToolkitError, match=r"tokens/a\.npy: is missing or damaged"):
        Blocks.open(tmp_path).stages[0].read([0])


def test_a_missing_pack_is_named(tmp_path: Path):
    (stage,) = make_blocks(tmp_path, {"a": [[5, 6, 7]]}, 8).stages
    missing = next((tmp_path / "packs").glob("*.start.npy"))
    missing.unlink()
    with pytest.raises(ToolkitError, match=f"{missing.name}: is missing or damaged"):
        stage.read([0])


def test_a_share_that_cannot_be_raised_is_said_as_it_is(tmp_path: Path):
    (stage,) = make_blocks(tmp_path, {"a": [[5] * 7] * 4}, 8).stages
    # Nothing else is there to come in place of what would be less.
    assert stage.raise_share(0, ["none such"], 2.0) == 0.0
    assert stage.raise_share(0, ["a"], 0.5) == 1.0
