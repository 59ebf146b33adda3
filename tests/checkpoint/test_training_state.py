"""States are compared with their sums before anything is taken from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.checkpoint import sharded_state
from toolkit.checkpoint.training_state import (
    StateWriter,
    load_parameters,
    load_state,
    saved_steps,
)
from toolkit.errors import CheckpointError
from toolkit.file_hashes import read_hash

FILES = ("parameters.safetensors", "optimizer.safetensors", "state.json", "sums.json")


def write_state(folder: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    writer = StateWriter(folder)
    writer.save(3, model, optimizer, {"skipped": 17})
    writer.wait()
    return model, optimizer


def test_a_whole_state_is_taken(tmp_path: Path):
    model, _ = write_state(tmp_path)
    other = torch.nn.Linear(8, 8)
    extra = load_state(tmp_path, 3, other, torch.optim.AdamW(other.parameters()))
    assert extra == {"skipped": 17, "step": 3}
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "removed"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_state_is_named_and_nothing_is_taken(tmp_path: Path, name: str, damage: str):
    write_state(tmp_path)
    path = tmp_path / "state-00000003" / name
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "a bit":
        place = len(data) * 3 // 4
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    model = torch.nn.Linear(8, 8)
    before = model.weight.clone()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match=r"state-00000003: is damaged: .*remove this folder"):
        load_state(tmp_path, 3, model, optimizer)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_parameters(tmp_path, 3, model)
    assert torch.equal(model.weight, before)
    assert not optimizer.state


def test_what_stands_beside_the_states_is_none(tmp_path: Path):
    write_state(tmp_path)
    for name in ("state-00000010 (copy)", "state-old", "state-7"):
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == [3]


def test_moments_of_a_parameter_that_the_model_lacks(tmp_path: Path):
    write_state(tmp_path)
    state = tmp_path / "state-00000003"
    moments = load_file(state / "optimizer.safetensors")
    save_file({**moments, "other:step": torch.zeros(())}, state / "optimizer.safetensors")
    sums = json.loads((state / "sums.json").read_text())
    sums["optimizer.safetensors"] = read_hash(state / "optimizer.safetensors")
    (state / "sums.json").write_text(json.dumps(sums))
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match=r"state-00000003: .*moments of other, which"):
        load_state(tmp_path, 3, model, optimizer)
    (state / "parameters.safetensors").rename(state / "parameters-00001-of-00001.safetensors")
    sums["parameters-00001-of-00001.safetensors"] = sums.pop("parameters.safetensors")
    (state / "sums.json").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError, match=r"state-00000003: .*moments of other, which"):
        sharded_state.load_state(tmp_path, 3, model, optimizer)


def test_a_parameter_in_two_parts_is_whole_in_every_form(tmp_path: Path):
    whole = torch.arange(8.0).reshape(4, 2)
    for number in range(2):
        sharded_state._write_file(
            tmp_path / f"parameters-0000{number + 1}-of-00002.safetensors",
            {"x": (whole[2 * number : 2 * number + 2], (2 * number, 0))},
        )
    state = sharded_state.StateParameters(tmp_path)
    assert torch.equal(state.tensor("x"), whole)
    entries = state.array("x")
    assert entries is not None
    assert list(entries[:]) == list(range(8))
    assert state.raw("x").size == state.info("x").num_bytes == 32
