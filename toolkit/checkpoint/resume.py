"""The state from which an interrupted training run continues, bit for bit, without pickles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checkpoint.folder import load_tensors, save_tensors
from toolkit.errors import CheckpointError

_PREFIX = "state-"


def save_state(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write parameters and optimizer moments after `step` steps; older states are then removed."""
    temporary = folder / f".{_PREFIX}{step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_tensors(parameters, temporary / "parameters.safetensors")
    moments: dict[str, Tensor] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            moments[f"{index}.{key}"] = torch.as_tensor(value).contiguous()
    save_tensors(moments, temporary / "optimizer.safetensors")
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    target = folder / f"{_PREFIX}{step:08d}"
    temporary.rename(target)
    for old in folder.glob(f"{_PREFIX}*"):
        if old != target:
            shutil.rmtree(old)


def latest_step(folder: Path) -> int | None:
    """The step of the newest whole state, or None."""
    steps = [int(path.name.removeprefix(_PREFIX)) for path in folder.glob(f"{_PREFIX}*")]
    return max(steps, default=None)


@torch.no_grad()
def load_state(folder: Path, step: int, model: nn.Module, optimizer: Any) -> None:
    """Put a saved state into a model and its optimizer.

    Raises:
        CheckpointError: the state does not fit the model.
    """
    source = folder / f"{_PREFIX}{step:08d}"
    parameters = load_tensors(source / "parameters.safetensors")
    for name, parameter in model.named_parameters():
        saved = parameters.get(name)
        if saved is None or saved.shape != parameter.shape:
            found = "nothing" if saved is None else list(saved.shape)
            raise CheckpointError(
                f"{source}: {name} is {list(parameter.shape)} in the model, the state has {found}; "
                "remove the folder to train from the start."
            )
        parameter.copy_(saved)
    state = optimizer.state_dict()
    for key, value in load_tensors(source / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)


def remove_states(folder: Path) -> None:
    """Remove what only served to continue."""
    for path in (*folder.glob(f"{_PREFIX}*"), *folder.glob(f".{_PREFIX}*")):
        shutil.rmtree(path)
