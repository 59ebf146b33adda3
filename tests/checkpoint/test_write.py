"""Shards are laid out first and filled in any order; what is missing is noticed."""

from __future__ import annotations

import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.write import PlannedTensor, ShardWriter, dtype_name, tensor_bytes
from toolkit.errors import CheckpointError

TENSORS = {
    "a": torch.arange(10.0),
    "b": torch.ones(3, 4).bfloat16(),
    "c": torch.empty(0, dtype=torch.int64),
    "d": torch.arange(6),
}
PLAN = [PlannedTensor(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in TENSORS.items()]


def fill(writer: ShardWriter) -> None:
    for name in ("d", "b", "c"):
        writer.write(name, 0, tensor_bytes(TENSORS[name]))
    data = tensor_bytes(TENSORS["a"])
    writer.write("a", 16, data[16:])  # the second part first
    writer.write("a", 0, data[:16])


def test_one_file(tmp_path: Path):
    with ShardWriter(tmp_path, PLAN) as writer:
        fill(writer)
    loaded = load_file(tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path).names) == list(TENSORS)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_shards_have_an_index(tmp_path: Path):
    with ShardWriter(tmp_path, PLAN, shard_bytes=50) as writer:
        fill(writer)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) == 3  # 40 | 24 + 0 | 48
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.tensor(n), t) for n, t in TENSORS.items())


def test_a_missing_tensor_is_noticed(tmp_path: Path):
    with (
        pytest.raises(CheckpointError, match="b was not written whole"),
        ShardWriter(tmp_path, PLAN[:2]) as writer,
    ):
        writer.write("a", 0, tensor_bytes(TENSORS["a"]))


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(CheckpointError, match=r"kB, but the disk has 0\.0 kB free"):
        ShardWriter(tmp_path, PLAN)
    assert list(tmp_path.iterdir()) == []


def test_a_piece_that_fails_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, fails = os.pwrite, [True]

    def fail_once(*arguments: Any) -> int:
        if fails:
            fails.clear()
            raise OSError("the disk fails")
        return write(*arguments)

    with ShardWriter(tmp_path, PLAN) as writer:
        monkeypatch.setattr(os, "pwrite", fail_once)
        with pytest.raises(OSError, match="the disk fails"):
            writer.write("d", 0, tensor_bytes(TENSORS["d"]))
        fill(writer)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["d"], TENSORS["d"])


def test_files_stay_open_while_a_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, begun, released = os.pwrite, threading.Event(), threading.Event()
    released_first: list[bool] = []

    def slow(*arguments: Any) -> int:
        begun.set()
        released_first.append(released.wait(0.3))
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", slow)
    writer = ShardWriter(tmp_path, PLAN)
    thread = threading.Thread(target=writer.write, args=("d", 0, tensor_bytes(TENSORS["d"])))
    thread.start()
    begun.wait()
    writer.release()
    released.set()
    thread.join()
    assert released_first == [False]
    with pytest.raises(CheckpointError, match="is closed"):
        writer.write("a", 0, tensor_bytes(TENSORS["a"]))
