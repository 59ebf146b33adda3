"""The state from which an interrupted training run continues, bit for bit, without pickles.

`state-<step>/` holds `parameters.safetensors` (those that learn), `optimizer.safetensors`,
`state.json`, and the sha256 of the three in `sums.json`, which are verified before a state is used;
it is written beside its place by a thread and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checkpoint.folder import load_tensors, save_tensors
from toolkit.errors import CheckpointError
from toolkit.file_hashes import read_hash
from toolkit.stage import appearing

_PREFIX = "state-"
_SUMS = "sums.json"


class StateWriter:
    """Writes states while training goes on.

    The state is copied at once, which takes memory for a second set of parameters and moments until
    it is written, and a fraction of the time.

    Args:
        folder: where states stand.
        keep: how many of the latest stay; one more does whose step `extra["best"]` names.
        active: False in processes that take part in gathering and write nothing.
    """

    def __init__(self, folder: Path, *, keep: int = 1, active: bool = True) -> None:
        self._folder, self._keep, self._active = folder, keep, active
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]
    ) -> None:
        """Copy the state after `step` steps and begin to write it; waits for the one before.

        Raises:
            OSError: the one before could not be written; it left no trace.
        """
        # One writer at a time: two would hold two copies of the state, and might finish in another
        # order.
        self.wait()
        parameters, optimizer_moments = _copies(model, optimizer)
        if not self._active:
            return
        write_arguments = (step, parameters, optimizer_moments, {**extra, "step": step})
        self._thread = threading.Thread(target=self._write_or_remember, args=write_arguments)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            OSError: what was being written could not be; earlier states stand.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            write_error, self._error = self._error, None
            raise write_error

    def _write_or_remember(self, step: int, *parts: Any) -> None:
        try:
            self._write(step, *parts)
        except BaseException as error:  # handed to the training thread
            self._error = error

    def _write(
        self,
        step: int,
        parameters: dict[str, Tensor],
        moments: dict[str, Tensor],
        extra: dict[str, Any],
    ) -> None:
        target = self._folder / f"{_PREFIX}{step:08d}"
        with appearing(target, doing="writing it", error=CheckpointError, replaces=True) as work:
            save_tensors(parameters, work / "parameters.safetensors")
            save_tensors(moments, work / "optimizer.safetensors")
            (work / "state.json").write_text(json.dumps(extra), encoding="utf-8")
            file_hashes = {
                state_file.name: read_hash(state_file) for state_file in sorted(work.iterdir())
            }
            # The sums come last, and all of it reaches the disk before the folder takes its name:
            # after a loss of power a state with its name is a whole one.
            (work / _SUMS).write_text(json.dumps(file_hashes), encoding="utf-8")
            for state_file in work.iterdir():
                with state_file.open("rb") as file:
                    os.fsync(file.fileno())
        best_step = (extra.get("best") or {}).get("step")
        for old_step in saved_steps(self._folder)[: -self._keep]:
            if old_step != best_step:
                shutil.rmtree(self._folder / f"{_PREFIX}{old_step:08d}")


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _copies(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parameters = {n: _whole(p.detach()) for n, p in model.named_parameters() if p.requires_grad}
    parameter_names = _names(model)
    moments: dict[str, Tensor] = {}
    inner_optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    for parameter, values in inner_optimizer.state.items():
        for key, value in values.items():
            moments[f"{parameter_names[id(parameter)]}:{key}"] = _whole(torch.as_tensor(value))
    return parameters, moments


def _whole(tensor: Tensor) -> Tensor:
    """A copy in memory of all of a tensor, gathered where processes hold parts of it."""
    if hasattr(tensor, "full_tensor"):
        full_tensor: Tensor = tensor.full_tensor()
        return full_tensor.cpu().contiguous()
    return tensor.detach().to("cpu", copy=True).contiguous()


def whole_parameters(model: nn.Module) -> dict[str, Tensor] | None:
    """All parameters by name, gathered, where processes hold parts of them; else None.

    Every process must call it.
    """
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return None
    return {name: _whole(parameter.detach()) for name, parameter in model.named_parameters()}


def saved_steps(folder: Path) -> list[int]:
    """Steps of all whole states, ascending."""
    folder_names = (path.name for path in folder.glob(f"{_PREFIX}*"))
    return sorted(int(name.removeprefix(_PREFIX)) for name in folder_names)


def latest_step(folder: Path) -> int | None:
    """The step of the newest whole state, or None."""
    return max(saved_steps(folder), default=None)


def state_folder(folder: Path, step: int) -> Path:
    """
    Raises:
        CheckpointError: there is no such state.
    """
    state_path = folder / f"{_PREFIX}{step:08d}"
    if not state_path.is_dir():
        steps_text = ", ".join(map(str, saved_steps(folder))) or "none"
        raise CheckpointError(f"{folder}: holds no state of step {step}; there are: {steps_text}.")
    return state_path


def verify_state(source: Path) -> None:
    """Compare a state's files with the sums that were written beside them.

    Raises:
        CheckpointError: one differs or is missing, or there are no sums.
    """
    try:
        sums = dict(json.loads((source / _SUMS).read_text(encoding="utf-8")))
        damaged_names = [
            name for name, file_hash in sums.items() if read_hash(source / name) != file_hash
        ]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        damaged_names = [f"{_SUMS} ({error})"]
    if damaged_names:
        raise CheckpointError(
            f"{source}: is damaged: not as it was written are {', '.join(damaged_names)}; remove "
            "this folder, and the run continues from the state before it, or from the start."
        )


@torch.no_grad()
def load_parameters(folder: Path, step: int, model: nn.Module) -> None:
    """Put the parameters of a saved state into a model.

    Raises:
        CheckpointError: the state is damaged or does not fit the model.
    """
    source_folder = state_folder(folder, step)
    verify_state(source_folder)
    saved_tensors = load_tensors(source_folder / "parameters.safetensors")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        saved_tensor = saved_tensors.get(name)
        if saved_tensor is None or saved_tensor.shape != parameter.shape:
            found_text = "nothing" if saved_tensor is None else list(saved_tensor.shape)
            raise CheckpointError(
                f"{source_folder}: {name} is {list(parameter.shape)} in the model, the state has "
                f"{found_text}; remove the folder to train from the start."
            )
        parameter.copy_(_like(saved_tensor, parameter))


@torch.no_grad()
def load_state(folder: Path, step: int, model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Put a saved state into a model and its optimizer.

    Returns:
        What was saved beside them.

    Raises:
        CheckpointError: the state is damaged or does not fit the model.
    """
    source_folder = state_folder(folder, step)
    load_parameters(folder, step, model)
    saved_extra = load_extra(source_folder)
    inner_optimizer = getattr(optimizer, "optimizer", optimizer)
    parameters_by_name = dict(model.named_parameters())
    for moment_key, value in load_tensors(source_folder / "optimizer.safetensors").items():
        name, _, moment = moment_key.rpartition(":")
        parameter = parameters_by_name[name]
        # Moments are cut like the parameter; the count of steps is one number everywhere.
        value = value.to(parameter.device) if value.dim() == 0 else _like(value, parameter)
        inner_optimizer.state.setdefault(parameter, {})[moment] = value
    return saved_extra


def load_extra(source: Path) -> dict[str, Any]:
    """What a state folder holds beside tensors.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return dict(json.loads((source / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: state.json cannot be read ({error}); remove this folder, and the run "
            "continues from the state before it, or from the start."
        ) from error


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as the part of it that this process holds, on its device."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        device_mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        return distribute_tensor(value.to(parameter.device), device_mesh, placements)
    return value.to(parameter.device)


def state_names(folder: Path) -> tuple[str, ...]:
    """Names of what only serves to continue: states, whole and half-written."""
    state_paths = (*folder.glob(f"{_PREFIX}*"), *folder.glob(f".{_PREFIX}*"))
    return tuple(sorted(path.name for path in state_paths))


def keep_states(folder: Path, into: Path, steps: Collection[int]) -> None:
    """Move the states of these steps to where they stay."""
    into.mkdir(exist_ok=True)
    for step in steps:
        state_path = state_folder(folder, step)
        state_path.rename(into / state_path.name)


def return_states(kept: Path, folder: Path) -> None:
    """Move kept states back, for a run that was stopped while it finished."""
    for step in saved_steps(kept):
        state_path = state_folder(kept, step)
        state_path.rename(folder / state_path.name)
