"""Training checkpoints of parameters that processes hold parts of: each process writes its own.

A state's folder then holds `parameters-<part>-of-<parts>.safetensors` and the like of the
optimizer, in the form of torch's distributed checkpoints in safetensors: where a part lies in its
tensor stands in the header. So any number of processes reads them, one too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import threading
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from toolkit.checkpoint import training_state
from toolkit.checkpoint.read import Checkpoint, TensorInfo, item_bytes, read_header
from toolkit.checkpoint.training_state import (
    WriterThread,
    damaged_files,
    drop_old_states,
    finish_state,
    load_extra,
    refuse_damaged,
    refuse_foreign,
    refuse_shape,
    state_folder,
    state_path,
    state_tensors,
)
from toolkit.checkpoint.write import dtype_name, tensor_bytes
from toolkit.errors import CheckpointError
from toolkit.file_hashes import read_hash
from toolkit.library_errors import first_line
from toolkit.stage import appearing

_OFFSETS = "DCP_SHARDING_INFO"
"""Key of a header under which torch's reader looks for where parts lie."""

Result = TypeVar("Result")


class ShardedStateWriter:
    """Writes states while training goes on; all processes make one, and call it alike.

    Nothing is copied: a thread writes from the tensors themselves. They change in the next update
    alone, which must wait for `wait_until_read`; the forward and backward pass before it need not.

    Args:
        folder: where states stand.
        keep: how many of the latest stay; one more does whose step `extra["best"]` names.
    """

    def __init__(self, folder: Path, *, keep: int = 1) -> None:
        self._folder, self._keep = folder, keep
        # Of its own: training exchanges gradients meanwhile, in an order of its own.
        # Its waits are long where disks are slow; a process that died is noticed by its connection.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=24))
        self._rank, self._count = dist.get_rank(), dist.get_world_size()
        self._writing = WriterThread()
        self._is_read = threading.Event()
        self._is_read.set()

    def save(self, step: int, model: nn.Module, optimizer: Any, extra: dict[str, Any]) -> None:
        """Begin to write the state after `step` steps; waits for the one before.

        Raises:
            CheckpointError: the one before could not be written; it left no trace.
        """
        self.wait()
        parts = [
            (f"{kind}-{self._rank + 1:05d}-of-{self._count:05d}.safetensors", _own_parts(tensors))
            for kind, tensors in zip(
                ("parameters", "optimizer"), state_tensors(model, optimizer), strict=True
            )
        ]
        # Before the thread starts: an update that follows at once must find it cleared.
        self._is_read.clear()
        self._writing.start(self._write_and_release, step, parts, {**extra, "step": step})

    def wait_until_read(self) -> None:
        """Until the tensors may change."""
        self._is_read.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            CheckpointError: what was being written could not be; earlier states stand.
        """
        self._writing.wait()

    def _write_and_release(self, *state: Any) -> None:
        try:
            self._write(*state)
        finally:
            self._is_read.set()

    def _write(self, step: int, parts: list[tuple[str, Parts]], extra: dict[str, Any]) -> None:
        target = state_path(self._folder, step)
        # The name that `appearing` works under; the first process alone enters it and is told.
        work = target.with_name(f".{target.name}.partial")
        settings: dict[str, Any] = {"doing": "writing it", "error": CheckpointError}
        with contextlib.ExitStack() as stack:
            # The first process makes the folder, all write into it, the first adds what is no
            # tensor and renames it. Each step waits for the one before in every process.
            appear = appearing(target, replaces=True, **settings)
            self._together(lambda: stack.enter_context(appear), first_alone=True)
            hashes = {
                name: file_hash
                for part_hashes in self._together(lambda: self._write_parts(work, parts))
                for name, file_hash in part_hashes.items()
            }
            self._together(lambda: finish_state(work, extra, hashes), first_alone=True)
            self._together(stack.close, first_alone=True)
        self._together(lambda: drop_old_states(self._folder, self._keep, extra), first_alone=True)

    def _write_parts(self, work: Path, parts: list[tuple[str, Parts]]) -> dict[str, str]:
        """Write what this process holds; returns sha256 by name of file."""
        for name, tensors in parts:
            _write_file(work / name, tensors)
        # What follows needs the files alone: training need not wait for the disk.
        self._is_read.set()
        hashes = {}
        for name, _ in parts:
            with (work / name).open("rb") as file:
                os.fsync(file.fileno())
            hashes[name] = read_hash(work / name)
        return hashes

    def _together(
        self, function: Callable[[], Result], *, first_alone: bool = False
    ) -> list[Result]:
        """Results of a function in all processes, or in the first alone.

        Raises:
            CheckpointError: it failed in one of them; then it is raised in all.
        """
        result: Any = None
        fault = ""
        try:
            if not first_alone or self._rank == 0:
                result = function()
        except Exception as error:
            # Exchanged like a result: a process that raised alone would leave the others waiting
            # for it.
            fault = str(error) if isinstance(error, CheckpointError) else first_line(error)
        outcomes: list[Any] = [None] * self._count
        dist.all_gather_object(
            outcomes, (fault, None if first_alone else result), group=self._group
        )
        for rank, (other_fault, _) in enumerate(outcomes):
            if other_fault:
                raise CheckpointError(
                    f"{self._folder}: process {rank} could not write its part of a state "
                    f"({other_fault}); the states before it stand. Make room, then continue."
                )
        return [other_result for _, other_result in outcomes]


Parts = Mapping[str, tuple[Tensor, tuple[int, ...]]]
"""Tensors that this process holds, and where they begin in the whole ones."""


def is_shared_out(model: nn.Module) -> bool:
    """Whether processes hold parts of a model's parameters."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


@torch.no_grad()
def _own_parts(tensors: Mapping[str, Any]) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """What of tensors this process is to write: of copies that several hold, the first one's."""
    parts: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if not hasattr(tensor, "full_tensor"):
            if dist.get_rank() == 0:
                parts[name] = (tensor.detach(), (0,) * tensor.dim())
            continue
        local_tensor, offsets = tensor.detach().to_local(), part_offsets(tensor)
        # Where a tensor has fewer rows than there are processes, some hold nothing of it.
        if offsets is not None and local_tensor.numel():
            parts[name] = (local_tensor, offsets)
    return parts


def part_offsets(tensor: Any) -> tuple[int, ...] | None:
    """Where the part of a shared-out tensor begins; None where another process holds it as well
    and comes first."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    coordinates = tensor.device_mesh.get_coordinate()
    for coordinate, placement in zip(coordinates, tensor.placements, strict=True):
        if placement.is_replicate() and coordinate:
            return None
    _, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tuple(offsets)


def _write_file(path: Path, parts: Parts) -> None:
    """Write parts of tensors as they lie in memory, one after the other."""
    offsets = {name: {"saved_offsets": list(begin)} for name, (_, begin) in parts.items()}
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", _OFFSETS: json.dumps(offsets), "DCP_VERSION": "1.0"}
    }
    next_offset = 0
    for name, (tensor, _) in parts.items():
        num_bytes = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [next_offset, next_offset + num_bytes],
        }
        next_offset += num_bytes
    header_json = json.dumps(header, separators=(",", ":")).encode()
    # Blanks are allowed behind the header; tensors then begin at a multiple of eight bytes.
    header_json += b" " * (-len(header_json) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(header_json)) + header_json)
        for tensor, _ in parts.values():
            view = tensor_bytes(tensor.cpu())
            while view:  # a system may write less than it is asked to
                view = view[file.write(view) :]


def load_parameters(folder: Path, step: int, model: nn.Module) -> None:
    """Put the parameters of a saved state into a model; either may be whole or in parts.

    Raises:
        CheckpointError: the state is damaged or does not fit the model.
    """
    source = state_folder(folder, step)
    if not _is_in_parts(source, model):
        training_state.load_parameters(folder, step, model)
        return
    _verify_together(source)
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    read_parts(source, learned)


def load_state(folder: Path, step: int, model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Put a saved state into a model and its optimizer; either may be whole or in parts.

    Returns:
        What was saved beside them.

    Raises:
        CheckpointError: the state is damaged or does not fit the model.
    """
    source = state_folder(folder, step)
    if not _is_in_parts(source, model):
        return training_state.load_state(folder, step, model, optimizer)
    load_parameters(folder, step, model)
    parameters_by_name = dict(model.named_parameters())
    moments: dict[str, Tensor] = {}
    for moment_key, shape in stored_shapes(source).items():
        name, colon, _ = moment_key.rpartition(":")
        if colon:  # not a parameter
            refuse_foreign(source, name, parameters_by_name)
            # Moments are cut like the parameter; the count of steps is one number everywhere.
            like = parameters_by_name[name].detach()
            moments[moment_key] = torch.zeros_like(like) if shape else torch.zeros(())
    read_parts(source, moments)
    inner_optimizer = getattr(optimizer, "optimizer", optimizer)
    for moment_key, value in moments.items():
        name, _, moment = moment_key.rpartition(":")
        parameter = parameters_by_name[name]
        inner_optimizer.state.setdefault(parameter, {})[moment] = value.to(parameter.device)
    return load_extra(source)


def _is_in_parts(source: Path, model: nn.Module) -> bool:
    """Whether a state, or the model that it goes to, is in parts."""
    return is_shared_out(model) or not (source / "parameters.safetensors").is_file()


def _verify_together(source: Path) -> None:
    """Each process reads its share of a state's files once more before they are used.

    Raises:
        CheckpointError: one of them is damaged.
    """
    if not dist.is_initialized():
        refuse_damaged(source, damaged_files(source))
        return
    count = dist.get_world_size()
    damaged_by_process: list[list[str]] = [[]] * count
    dist.all_gather_object(damaged_by_process, damaged_files(source, (dist.get_rank(), count)))
    refuse_damaged(source, sorted({name for names in damaged_by_process for name in names}))


def read_parts(source: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors, or what this process holds of them, from a state's files.

    All processes that hold parts must call it.

    Args:
        source: folder of a state, in parts or whole.
        targets: tensors by their names in the files.

    Raises:
        CheckpointError: a tensor is not there, or of another shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    shapes = stored_shapes(source)
    for name, target in targets.items():
        refuse_shape(source, name, tuple(target.shape), shapes.get(name))
    # Single numbers have no rows to cut, and torch's reader fails at them.
    numbers = {name: target for name, target in targets.items() if target.dim() == 0}
    for path in sorted(source.glob("*.safetensors")) if numbers else ():
        with safe_open(path, framework="pt") as file:
            for name in numbers.keys() & set(file.keys()):
                numbers[name].copy_(file.get_tensor(name))
    tensors: dict[str, Any] = {n: target for n, target in targets.items() if n not in numbers}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(source)))


def stored_shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the whole tensors that a state's files hold, or parts of them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, infos, offsets in _files(source, "*.safetensors"):
        for name, info in infos.items():
            begin = offsets.get(name, (0,) * len(info.shape))
            if len(begin) != len(info.shape):
                raise CheckpointError(f"{path}: {name} does not say where its part lies.")
            ends = [start + size for start, size in zip(begin, info.shape, strict=True)]
            known = shapes.get(name, tuple(ends))
            shapes[name] = tuple(map(max, known, ends))
    return shapes


def _files(
    source: Path, pattern: str
) -> list[tuple[Path, dict[str, TensorInfo], dict[str, tuple[int, ...]]]]:
    """Files of a state, what they hold, and where parts of tensors lie."""
    files = []
    for path in sorted(source.glob(pattern)):
        infos = read_header(path)
        with safe_open(path, framework="pt") as file:
            parts_json = (file.metadata() or {}).get(_OFFSETS, "{}")
        offsets = {
            name: tuple(part["saved_offsets"]) for name, part in json.loads(parts_json).items()
        }
        files.append((path, infos, offsets))
    return files


class StateParameters(Checkpoint):
    """Parameters of a state as whole tensors, put together one by one where parts were written.

    Args:
        source: folder of the state.
    """

    def __init__(self, source: Path) -> None:
        self._parts: dict[str, list[tuple[Checkpoint, tuple[int, ...]]]] = {}
        shapes = stored_shapes(source)
        tensors: dict[str, TensorInfo] = {}
        for _, infos, offsets in _files(source, "parameters*.safetensors"):
            file_tensors = Checkpoint(source, infos)
            for name, info in infos.items():
                begin = offsets.get(name, (0,) * len(info.shape))
                self._parts.setdefault(name, []).append((file_tensors, begin))
                num_bytes = math.prod(shapes[name]) * item_bytes(info.dtype)
                tensors.setdefault(
                    name, TensorInfo(info.file, info.dtype, shapes[name], info.start, num_bytes)
                )
        super().__init__(source, tensors)
        for name, parts in self._parts.items():
            # A lost file between others shows here alone: the shape follows from the parts that lie
            # farthest.
            num_held = sum(math.prod(part.info(name).shape) for part, _ in parts)
            if num_held != math.prod(shapes[name]):
                raise CheckpointError(f"{source}: holds not all parts of {name}; copy it again.")
        if not tensors:
            raise CheckpointError(f"{source}: holds no parameters*.safetensors; copy it again.")

    def tensor(self, name: str) -> Tensor:
        """A tensor in its stored type; a copy where its parts lie in several files."""
        parts = self._parts[name]
        if len(parts) == 1:
            return parts[0][0].tensor(name)
        first_part = parts[0][0].tensor(name)
        whole = torch.empty(self.info(name).shape, dtype=first_part.dtype)
        for file_tensors, begin in parts:
            part = file_tensors.tensor(name)
            place = tuple(slice(b, b + n) for b, n in zip(begin, part.shape, strict=True))
            whole[place] = part
        return whole

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor; a copy where its parts lie in several files."""
        parts = self._parts[name]
        if len(parts) == 1:
            return parts[0][0].raw(name)
        return np.frombuffer(tensor_bytes(self.tensor(name)), np.uint8)

    def give_back(self, name: str) -> None:
        """Let the system drop a tensor's pages."""
        for file_tensors, _ in self._parts[name]:
            file_tensors.give_back(name)
