"""`pytorch_model.bin` is read like safetensors, and never runs code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.pickled import PickledCheckpoint
from toolkit.errors import CheckpointError

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.arange(5000.0).bfloat16(),
    "c": torch.arange(6.0).view(2, 3).T,
    "d": torch.empty(0, dtype=torch.int64),
    "e": torch.nn.Parameter(torch.ones(2)),
}


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_values_come_back(tmp_path: Path, zipped: bool):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(tmp_path)
    assert isinstance(checkpoint, PickledCheckpoint)
    assert checkpoint.names == list(TENSORS)
    for name, tensor in TENSORS.items():
        for _ in range(2):  # the second time from pages that were given back
            assert torch.equal(checkpoint.tensor(name), tensor)
            checkpoint.give_back(name)
        info = checkpoint.info(name)
        assert (info.shape, info.num_bytes) == (tuple(tensor.shape), checkpoint.raw(name).size)
    assert checkpoint.info("b").dtype == "BF16"
    array = checkpoint.array("c")
    assert array is not None
    assert array.tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]


def test_shards(tmp_path: Path):
    for number, name in enumerate("ab", start=1):
        torch.save({name: TENSORS[name]}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    weight_map = {n: f"pytorch_model-0000{i}-of-00002.bin" for i, n in enumerate("ab", start=1)}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).names == ["a", "b"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "z": weight_map["a"]}}))
    with pytest.raises(CheckpointError, match="names z"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool):
    mark = tmp_path / "was-run"
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1), "x": Code(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: holds more than tensors") as e:
        open_checkpoint(tmp_path)
    assert "mkdir" in str(e.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": torch.ones(1), "epoch": 3}, "'epoch' is a int, not a tensor"),
        ([torch.ones(1)], "holds a list, not tensors by name"),
        ({"a": torch.ones(2).to_sparse()}, "a is stored as torch.float32, torch.sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a is stored as torch.complex64"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, words: str):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match=r"cannot be read .* copy the file again"):
        open_checkpoint(tmp_path)
