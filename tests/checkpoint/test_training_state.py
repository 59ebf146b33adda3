"""States are compared with their sums before anything is taken from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.checkpoint.training_state import StateWriter, load_parameters, load_state
from toolkit.errors import CheckpointError

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
