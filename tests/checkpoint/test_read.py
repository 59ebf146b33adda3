"""Headers are checked against their files before anything is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import lacks_shards, weight_files
from toolkit.errors import CheckpointError


def entry(
    begin: int, stop: int, shape: tuple[int, ...] = (2,), dtype: str = "F32"
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, stop]}


def write(folder: Path, header: dict[str, Any], data: bytes, *, claim: int | None = None) -> None:
    text = json.dumps(header).encode()
    length = len(text) if claim is None else claim
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + data)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64]
)
def test_values_come_back(tmp_path: Path, dtype: torch.dtype):
    tensors = {"a": torch.arange(6.0).view(2, 3).to(dtype), "b": torch.ones(1).to(dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        read = checkpoint.tensor(name)
        assert read.dtype == dtype
        assert torch.equal(read.float(), tensor.float())
        checkpoint.give_back(name)
        assert torch.equal(checkpoint.tensor(name).float(), tensor.float())


def test_shards(tmp_path: Path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {n: f"model-0000{i}-of-00002.safetensors" for i, n in enumerate("ab", start=1)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).names == ["a", "b"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "c": weight_map["a"]}}))
    with pytest.raises(CheckpointError, match="names c"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "claim", "words"),
    [
        ({"a": entry(0, 8)}, b"\0" * 7, None, "has 7. bytes, its header speaks of"),
        ({"a": entry(0, 8)}, b"\0" * 9, None, "its header speaks of"),
        ({"a": entry(0, 8)}, b"\0" * 8, 10**9, "claims a header of 1000000000 bytes"),
        ({"a": entry(0, 8)}, b"\0" * 8, 5, "not sound JSON"),
        ({"a": entry(0, 12)}, b"\0" * 12, None, r"\[2\] of F32, 8 bytes, but spans 12"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12, None, "begins at byte 4 where 8"),
        ({"a": entry(4, 12)}, b"\0" * 12, None, "begins at byte 4 where 0"),
        ({"a": entry(0, 8, dtype="Q4")}, b"\0" * 8, None, "stored as 'Q4'"),
        ({"a": {"dtype": "F32"}}, b"", None, "damaged entry"),
        ({"a": {**entry(0, 8, (2,)), "dtype": {}}}, b"\0" * 8, None, "damaged entry"),
        ({"a": entry(0, 8, (-2,))}, b"\0" * 8, None, "damaged entry"),
    ],
)
def test_lying_headers_are_refused(
    tmp_path: Path, header: dict[str, Any], data: bytes, claim: int | None, words: str
):
    write(tmp_path, header, data, claim=claim)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_an_empty_file_and_an_empty_folder(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds neither safetensors nor pytorch_model"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not even a header"):
        open_checkpoint(tmp_path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path):
    one = json.dumps(entry(0, 8))
    text = f'{{"a": {one}, "a": {json.dumps(entry(8, 16))}}}'.encode()
    data = struct.pack("<Q", len(text)) + text + b"\0" * 16
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="'a' stands in it twice"):
        open_checkpoint(tmp_path)


def test_other_files_beside_the_weights_are_not_read(tmp_path: Path):
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file({"a": torch.zeros(2)}, tmp_path / first)
    save_file({"b": torch.ones(2)}, tmp_path / second)
    # Mistral's own form, the same tensors once more in another type; and an adapter.
    save_file({"a": torch.ones(20).bfloat16()}, tmp_path / "consolidated.safetensors")
    save_file({"a": torch.ones(20).bfloat16()}, tmp_path / "adapter_model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    assert [path.name for path in weight_files(tmp_path)] == [first, second]
    assert stored_dtype(tmp_path) == torch.float32
    assert not lacks_shards(tmp_path)
    # transformers reads the one file, whatever an index beside it says.
    save_file({"c": torch.zeros(1).half()}, tmp_path / "model.safetensors")
    (tmp_path / second).unlink()
    assert open_checkpoint(tmp_path).names == ["c"]
    assert stored_dtype(tmp_path) == torch.float16
    assert not lacks_shards(tmp_path)
    # Unless the index names that one too.
    index.write_text(json.dumps({"weight_map": {"a": first, "c": "model.safetensors"}}))
    assert open_checkpoint(tmp_path).names == ["a", "c"]


def test_shards_that_are_missing(tmp_path: Path):
    assert not lacks_shards(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    assert lacks_shards(tmp_path)  # before the index has come
    save_file({"b": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    assert not lacks_shards(tmp_path)
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00003-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert lacks_shards(tmp_path)
