"""The state from which an interrupted training run continues, bit for bit, without pickles.

`state-<step>/` holds `parameters.safetensors` (those that learn), `optimizer.safetensors`,
`state.json`, and the sha256 of the three in `sums.json`, which are verified before a state is used;
it is written beside its place by a thread and renamed when it is whole. Where processes hold parts
of the parameters, the tensors are in parts too: see `sharded_state`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection
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


class WriterThread:
    """Runs what writes in a thread, one after the other; an error waits until it is asked for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[..., None], *arguments: Any) -> None:
        """Begin to write; nothing else may be writing."""
        self._thread = threading.Thread(target=self._run, args=(write, *arguments))
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written; raises what stopped the last writing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            write_error, self._error = self._error, None
            raise write_error

    def _run(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except BaseException as error:  # handed to the training thread
            self._error = error


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
        self._writing = WriterThread()

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
        parameters, optimizer_moments = (
            {name: _whole(tensor) for name, tensor in tensors.items()}
            for tensors in state_tensors(model, optimizer)
        )
        # Only now: gathering is a collective, which every process must take part in.
        if not self._active:
            return
        extra = {**extra, "step": step}
        self._writing.start(self._write, step, parameters, optimizer_moments, extra)

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            OSError: what was being written could not be; earlier states stand.
        """
        self._writing.wait()

    def _write(
        self,
        step: int,
        parameters: dict[str, Tensor],
        moments: dict[str, Tensor],
        extra: dict[str, Any],
    ) -> None:
        target = state_path(self._folder, step)
        with appearing(target, doing="writing it", error=CheckpointError, replaces=True) as work:
            save_tensors(parameters, work / "parameters.safetensors")
            save_tensors(moments, work / "optimizer.safetensors")
            names = ("optimizer.safetensors", "parameters.safetensors")
            finish_state(work, extra, {name: read_hash(work / name) for name in names})
        # After the rename, so that at every moment a whole state stands.
        drop_old_states(self._folder, self._keep, extra)


def finish_state(work: Path, extra: dict[str, Any], hashes: dict[str, str]) -> None:
    """Write what a state holds beside tensors.

    Args:
        work: folder of the state, under the name that it has meanwhile.
        extra: values to store.
        hashes: sha256 of the files of tensors, by name.
    """
    (work / "state.json").write_text(json.dumps(extra), encoding="utf-8")
    hashes = {**hashes, "state.json": read_hash(work / "state.json")}
    # The sums come last, and all of it reaches the disk before the folder takes its name: after a
    # loss of power a state with its name is a whole one.
    (work / _SUMS).write_text(json.dumps(dict(sorted(hashes.items()))), encoding="utf-8")
    for state_file in work.iterdir():
        with state_file.open("rb") as file:
            os.fsync(file.fileno())


def drop_old_states(folder: Path, keep: int, extra: dict[str, Any]) -> None:
    """Remove all but the latest states, and the best that is named."""
    best_step = (extra.get("best") or {}).get("step")
    for old_step in saved_steps(folder)[:-keep]:
        if old_step != best_step:
            shutil.rmtree(state_path(folder, old_step))


def state_path(folder: Path, step: int) -> Path:
    """Where the state of a step stands, or would."""
    return folder / f"{_PREFIX}{step:08d}"


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def state_tensors(model: nn.Module, optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters that learn and moments, by the names that a state has for them; not copies."""
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    parameter_names = _names(model)
    inner_optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    moments = {
        f"{parameter_names[id(parameter)]}:{key}": torch.as_tensor(value)
        for parameter, values in inner_optimizer.state.items()
        for key, value in values.items()
    }
    return parameters, moments


def _whole(tensor: Tensor) -> Tensor:
    """A copy in memory of all of a tensor, gathered where processes hold parts of it."""
    if hasattr(tensor, "full_tensor"):
        full_tensor: Tensor = tensor.full_tensor()
        return full_tensor.cpu().contiguous()
    # A copy on the CPU too: training changes the tensor while the thread is writing.
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
    # A copy of a state, or what else somebody put there, is none.
    matches = (re.fullmatch(rf"{_PREFIX}(\d{{8,}})", name) for name in folder_names)
    return sorted(int(match[1]) for match in matches if match)


def latest_step(folder: Path) -> int | None:
    """The step of the newest whole state, or None."""
    return max(saved_steps(folder), default=None)


def state_folder(folder: Path, step: int) -> Path:
    """
    Raises:
        CheckpointError: there is no such state.
    """
    path = state_path(folder, step)
    if not path.is_dir():
        steps_text = ", ".join(map(str, saved_steps(folder))) or "none"
        raise CheckpointError(f"{folder}: holds no state of step {step}; there are: {steps_text}.")
    return path


def verify_state(source: Path) -> None:
    """Compare a state's files with the sums that were written beside them.

    Raises:
        CheckpointError: one differs or is missing, or there are no sums.
    """
    refuse_damaged(source, damaged_files(source))


def damaged_files(source: Path, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Files of a state that are not as they were written, or missing.

    Args:
        source: folder of the state.
        share: which part of the files is read, and how many parts there are.
    """
    number, count = share
    try:
        sums = dict(json.loads((source / _SUMS).read_text(encoding="utf-8")))
        shared_names = sorted(sums)[number::count]
        return [name for name in shared_names if read_hash(source / name) != sums[name]]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return [f"{_SUMS} ({error})"]


def refuse_damaged(source: Path, damaged_names: Collection[str]) -> None:
    """
    Raises:
        CheckpointError: files of a state are damaged.
    """
    if damaged_names:
        raise CheckpointError(
            f"{source}: is damaged: not as it was written are {', '.join(damaged_names)}; remove "
            "this folder, and the run continues from the state before it, or from the start."
        )


@torch.no_grad()
def load_parameters(folder: Path, step: int, model: nn.Module) -> None:
    """Put the parameters of a saved state into a model that this process holds whole.

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
        saved_shape = None if saved_tensor is None else tuple(saved_tensor.shape)
        refuse_shape(source_folder, name, tuple(parameter.shape), saved_shape)
        parameter.copy_(saved_tensors[name].to(parameter.device))


def refuse_shape(
    source: Path, name: str, shape: tuple[int, ...], saved_shape: tuple[int, ...] | None
) -> None:
    """
    Raises:
        CheckpointError: a state holds another shape than a model has, or no such tensor.
    """
    if saved_shape != shape:
        found_text = "nothing" if saved_shape is None else list(saved_shape)
        raise CheckpointError(
            f"{source}: {name} is {list(shape)} in the model, the state has {found_text}; remove "
            "the folder to train from the start."
        )


def refuse_foreign(source: Path, name: str, parameters: Collection[str]) -> None:
    """
    Raises:
        CheckpointError: a state's optimizer knows a parameter that the model has not.
    """
    if name not in parameters:
        raise CheckpointError(
            f"{source}: its optimizer has moments of {name}, which the model has not; remove the "
            "folder to train from the start."
        )


@torch.no_grad()
def load_state(folder: Path, step: int, model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Put a saved state into a model that this process holds whole, and into its optimizer.

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
        refuse_foreign(source_folder, name, parameters_by_name)
        parameter = parameters_by_name[name]
        inner_optimizer.state.setdefault(parameter, {})[moment] = value.to(parameter.device)
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


def state_names(folder: Path) -> tuple[str, ...]:
    """Names of what only serves to continue: states, whole and half-written."""
    state_paths = (*folder.glob(f"{_PREFIX}*"), *folder.glob(f".{_PREFIX}*"))
    return tuple(sorted(path.name for path in state_paths))


def keep_states(folder: Path, into: Path, steps: Collection[int]) -> None:
    """Move the states of these steps to where they stay."""
    into.mkdir(exist_ok=True)
    for step in steps:
        path = state_folder(folder, step)
        path.rename(into / path.name)


def return_states(kept: Path, folder: Path) -> None:
    """Move kept states back, for a run that was stopped while it finished."""
    for step in saved_steps(kept):
        path = state_folder(kept, step)
        path.rename(folder / path.name)
