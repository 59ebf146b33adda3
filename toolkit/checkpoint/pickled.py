"""Reading `pytorch_model.bin`: memory-mapped, and refused where it holds more than tensors."""

from __future__ import annotations

import ctypes
import mmap
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.checkpoint.read import (
    TORCH_NAMES,
    Checkpoint,
    TensorInfo,
    check_index,
    list_files,
)
from toolkit.checkpoint.usable import refuse_unusable
from toolkit.errors import CheckpointError

_STORED = {f"torch.{torch_name}": name for name, torch_name in TORCH_NAMES.items()}


class PickledCheckpoint(Checkpoint):
    """A folder of `.bin` files, opened: torch maps them into memory and nothing is copied.

    Args:
        folder: model folder.
        tensors: headers of all tensors, by name.
        loaded: the same tensors, as torch sees them.
        mapped: files whose pages may be given back; the others are held in memory.
        unheld: see `Checkpoint`.
    """

    def __init__(
        self,
        folder: Path,
        tensors: dict[str, TensorInfo],
        loaded: dict[str, Tensor],
        mapped: frozenset[Path],
        unheld: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(folder, tensors, unheld)
        self._loaded = loaded
        self._mapped = mapped

    def tensor(self, name: str) -> Tensor:
        self.info(name)
        return self._loaded[name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        flat_tensor = self.tensor(name).reshape(-1)
        if not flat_tensor.numel():
            return np.empty(0, np.uint8)
        byte_view: NDArray[np.uint8] = flat_tensor.view(torch.uint8).numpy()
        return byte_view

    def give_back(self, name: str) -> None:
        info, tensor = self.info(name), self._loaded[name]
        # Of memory that is no file's, giving back would leave zeros.
        if info.file in self._mapped and tensor.is_contiguous():
            _give_back(tensor.data_ptr(), info.num_bytes)


def open_pickled(folder: Path, name: str = "pytorch_model.bin") -> Checkpoint | None:
    """Open the `.bin` files of a folder, or None where there are none.

    Args:
        folder: of a model or an adapter.
        name: of its one file; shards and their index are named after it.

    Raises:
        CheckpointError: a file holds code or anything else but tensors, or is damaged.
    """
    index_name, shard_pattern = f"{name}.index.json", f"{name.removesuffix('.bin')}*.bin"
    files, weight_map = list_files(folder, index_name, name, shard_pattern)
    tensors: dict[str, TensorInfo] = {}
    loaded_tensors: dict[str, Tensor] = {}
    mapped_files: set[Path] = set()
    for file in files:
        file_tensors, is_mapped = _load(file)
        if is_mapped:
            mapped_files.add(file)
        for name, tensor in file_tensors.items():
            if name in tensors:
                raise CheckpointError(f"{file}: {name} stands in {tensors[name].file.name} too.")
            tensors[name] = _describe(file, name, tensor)
            loaded_tensors[name] = tensor.detach()
    if not files:
        return None
    refuse_unusable(folder, tensors)
    unheld = check_index(folder / index_name, weight_map, tensors)
    return PickledCheckpoint(folder, tensors, loaded_tensors, frozenset(mapped_files), unheld)


def _load(file: Path) -> tuple[dict[str, Any], bool]:
    _refuse_packed(file)
    try:
        loaded_object, is_mapped = _load_tensors_only(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds more than tensors ({_reason(error)}); refused, because loading it "
            "would run its code. Get the model as safetensors."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{file}: cannot be read ({_reason(error)}); download or copy the file again."
        ) from error
    if not isinstance(loaded_object, dict):
        raise CheckpointError(
            f"{file}: holds a {type(loaded_object).__name__}, not tensors by name; save the "
            "model's state_dict."
        )
    return dict(loaded_object), is_mapped


def _refuse_packed(file: Path) -> None:
    """torch stores what it saves; only a stranger's file unpacks to more than it has."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked_bytes = sum(info.file_size for info in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # no archive, or a damaged one: loading it says so
    packed_bytes = file.stat().st_size
    if unpacked_bytes > packed_bytes + (64 << 20):
        raise CheckpointError(
            f"{file}: its {packed_bytes:,} bytes unpack to {unpacked_bytes:,}, as nothing that "
            "torch writes does; refused."
        )


def _load_tensors_only(file: Path) -> tuple[Any, bool]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True), True
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
    # Written before torch 1.6: such a file cannot be mapped.
    return torch.load(file, map_location="cpu", weights_only=True), False


def _reason(error: Exception) -> str:
    error_lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in error_lines if "GLOBAL" in line or "Unsupported" in line), "")
    return (told or (error_lines[0] if error_lines else type(error).__name__))[:160]


def _describe(file: Path, name: Any, tensor: Any) -> TensorInfo:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise CheckpointError(
            f"{file}: {name!r} is a {type(tensor).__name__}, not a tensor; save the model's "
            "state_dict alone."
        )
    stored_type = _STORED.get(str(tensor.dtype))
    if stored_type is None or tensor.layout != torch.strided:
        raise CheckpointError(
            f"{file}: {name} is stored as {tensor.dtype}, {tensor.layout}, which is not supported; "
            f"known: {', '.join(TORCH_NAMES)}."
        )
    num_bytes = tensor.numel() * tensor.element_size()
    # Expanded views share entries: a shape may say more than the bytes that were read.
    if num_bytes > file.stat().st_size:
        raise CheckpointError(
            f"{file}: {name} is {list(tensor.shape)} of {tensor.dtype}, more than the file holds; "
            "download or copy the file again."
        )
    return TensorInfo(file, stored_type, tuple(tensor.shape), 0, num_bytes)


def _give_back(address: int, num_bytes: int) -> None:
    """Let the system drop mapped pages that lie whole within these bytes."""
    page_bytes = mmap.PAGESIZE
    first_page = -(-address // page_bytes) * page_bytes
    pages_bytes = (address + num_bytes - first_page) // page_bytes * page_bytes
    # 4 is MADV_DONTNEED; numpy gives an address, which the mmap module's own madvise does not take.
    if pages_bytes > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first_page), ctypes.c_size_t(pages_bytes), 4)
