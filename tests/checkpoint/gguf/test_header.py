"""GGUF headers and configs that claim more than the file holds."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from toolkit.checkpoint.gguf.header import check_gguf
from toolkit.checkpoint.model_values import oversize_fault
from toolkit.checkpoint.pickled import open_pickled
from toolkit.errors import CheckpointError


def written(path: Path, blocks: int = 1, width: int = 8) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(blocks)
    writer.add_embedding_length(width)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_sound_file_passes(tmp_path: Path):
    check_gguf(written(tmp_path / "a.gguf"))


@pytest.mark.parametrize(("blocks", "width"), [(10**9, 8), (1, 10**9)])
def test_counts(tmp_path: Path, blocks: int, width: int):
    with pytest.raises(CheckpointError, match=r"a\.gguf: llama\."):
        check_gguf(written(tmp_path / "a.gguf", blocks, width))


@pytest.mark.parametrize("place", [8, 16])
@pytest.mark.parametrize("count", [10**6, 2**62])
def test_numbers_of_the_header(tmp_path: Path, place: int, count: int):
    path = written(tmp_path / "a.gguf")
    data = bytearray(path.read_bytes())
    data[place : place + 8] = struct.pack("<Q", count)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"^a\.gguf: "):
        check_gguf(path)


def test_files_cut_short_or_changed_end_in_a_line(tmp_path: Path):
    path = written(tmp_path / "a.gguf")
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"^a\.gguf: "):
            check_gguf(path)


def test_a_cut_tensor_is_named(tmp_path: Path):
    path = written(tmp_path / "a.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=rf"token_embd.weight ends at byte {len(whole)}"):
        check_gguf(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 50), ("vocab_size", 10**9), ("intermediate_size", 10**8)],
)
def test_configs_beyond_the_files(key: str, value: int):
    sound = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    assert oversize_fault(sound, 20, 100_000) is None
    assert str(oversize_fault({**sound, key: value}, 20, 100_000)).startswith(f"{key} is ")
    assert str(oversize_fault({"text_config": {**sound, key: value}}, 20, 100_000)).startswith(key)


def test_pickles_that_unpack(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(100 << 20))
    with pytest.raises(CheckpointError, match="unpack to"):
        open_pickled(tmp_path)


def test_pickles_that_spread_one_number(tmp_path: Path):
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than the file holds"):
        open_pickled(tmp_path)
