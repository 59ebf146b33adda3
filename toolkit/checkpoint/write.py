"""Writing checkpoints as they are computed: shards laid out first, bytes put in their places."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import shutil
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.read import TORCH_NAMES, item_bytes
from toolkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHARD_BYTES = 5_000_000_000
"""Size above which a new shard begins, as on the hubs."""

_MOST_WAITING = 4
"""Blocks that wait for a thread which is writing already; they are held in memory."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written; `dtype` by the format's name, such as `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * item_bytes(self.dtype)


def divide_into_shards(
    tensors: Sequence[PlannedTensor], shard_bytes: int = SHARD_BYTES
) -> dict[str, list[PlannedTensor]]:
    """Tensors by the file that holds them, in the order given.

    Args:
        tensors: all of a model.
        shard_bytes: most bytes of tensors in one file; a larger tensor has a file of its own.
    """
    shards: list[list[PlannedTensor]] = [[]]
    filled_bytes = 0
    for tensor in tensors:
        if shards[-1] and filled_bytes + tensor.num_bytes > shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(tensor)
        filled_bytes += tensor.num_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard_tensors
        for number, shard_tensors in enumerate(shards, start=1)
    }


def write_index(folder: Path, shards: Mapping[str, Sequence[PlannedTensor]]) -> None:
    """Write the index that says which file holds a tensor; one file alone has none."""
    if len(shards) == 1:
        return
    total_bytes = sum(tensor.num_bytes for shard in shards.values() for tensor in shard)
    weight_map = {tensor.name: file for file, shard in shards.items() for tensor in shard}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@dataclass
class _Place:
    descriptor: int
    start: int
    num_bytes: int
    written: int = 0


@dataclass(frozen=True)
class _Piece:
    place: _Place
    offset: int
    view: memoryview


class ShardWriter:
    """Writes planned tensors into shards; blocks may come in any order and from any thread.

    Use as a context manager: leaving it normally checks that every byte was written.

    Args:
        folder: where the files go; it must exist.
        tensors: all of them, in the order they are to stand in.
        shard_bytes: most bytes of tensors in one file; a larger tensor has a file of its own.
        joins: whether another process has made the same files, and this one writes into them.

    Raises:
        CheckpointError: the disk has too little room.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[PlannedTensor],
        shard_bytes: int = SHARD_BYTES,
        *,
        joins: bool = False,
    ) -> None:
        self.folder = folder
        self._joins = joins
        self.total_bytes = sum(tensor.num_bytes for tensor in tensors)
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < self.total_bytes and not joins:
            raise CheckpointError(
                f"{folder}: needs {bytes_text(self.total_bytes)}, but the disk has "
                f"{bytes_text(free_bytes)} free; make room and run again."
            )
        self._places: dict[str, _Place] = {}
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        self._putting_ended = threading.Condition(self._lock)
        self._num_putting = 0
        self._is_released = False
        self._is_writing = False
        self._waiting: list[_Piece] = []
        try:
            self._lay_out(list(tensors), shard_bytes)
        except BaseException:
            self.release()
            raise

    def _lay_out(self, tensors: list[PlannedTensor], shard_bytes: int) -> None:
        shards = divide_into_shards(tensors, shard_bytes)
        for file_name, shard_tensors in shards.items():
            self._begin_file(self.folder / file_name, shard_tensors)
        if not self._joins:
            write_index(self.folder, shards)

    def _begin_file(self, path: Path, shard: list[PlannedTensor]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        next_offset = 0
        for tensor in shard:
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [next_offset, next_offset + tensor.num_bytes],
            }
            next_offset += tensor.num_bytes
        header_json = json.dumps(header, separators=(",", ":")).encode()
        header_json += b" " * (-len(header_json) % 8)  # tensors begin at a multiple of eight bytes
        # O_EXCL: a file that stands there already is somebody's, and is not written over.
        make = 0 if self._joins else os.O_CREAT | os.O_EXCL
        descriptor = os.open(path, make | os.O_RDWR, 0o644)
        self._descriptors.append(descriptor)
        if not self._joins:
            os.write(descriptor, struct.pack("<Q", len(header_json)) + header_json)
            _reserve(descriptor, 8 + len(header_json) + next_offset)
        next_start = 8 + len(header_json)
        for tensor in shard:
            self._places[tensor.name] = _Place(descriptor, next_start, tensor.num_bytes)
            next_start += tensor.num_bytes

    def write(self, name: str, offset: int, data: memoryview | bytes) -> None:
        """Put bytes of a tensor into their place.

        Args:
            name: of the tensor.
            offset: first byte within the tensor.
            data: contiguous bytes, which nobody changes afterwards. A thread that comes while
                another is writing leaves them to that one: the system lets one write to a file at
                a time, and has the others spin.
        """
        place = self._places[name]
        view = memoryview(data).cast("B")
        if offset + len(view) > place.num_bytes:
            raise ValueError(f"{name}: {offset + len(view)} bytes, but {place.num_bytes} planned")
        next_piece = _Piece(place, offset, view)
        with self._lock:
            if self._is_writing and len(self._waiting) < _MOST_WAITING:
                self._waiting.append(next_piece)
                return
            # Beyond that many pieces whoever comes writes itself, so that memory stays bounded.
            is_first, self._is_writing = not self._is_writing, True
        try:
            self._put(next_piece)
            while is_first:
                with self._lock:
                    # Under the lock that a thread leaves its piece under: none is left unseen.
                    if not self._waiting:
                        self._is_writing = False
                        return
                    next_piece = self._waiting.pop(0)
                self._put(next_piece)
        except BaseException:
            # Whoever comes next writes itself, and what waits: nothing is left to a thread that
            # has gone.
            if is_first:
                with self._lock:
                    self._is_writing = False
            raise

    def _put(self, piece: _Piece) -> None:
        piece_place, num_written = piece.place, 0
        with self._lock:
            if self._is_released:
                raise CheckpointError(f"{self.folder}: is closed; another thread has failed.")
            self._num_putting += 1
        try:
            while num_written < len(piece.view):
                first_byte = piece_place.start + piece.offset + num_written
                # A system may write less than it is asked to, on signals and at most 2 GiB at once.
                num_written += os.pwrite(
                    piece_place.descriptor, piece.view[num_written:], first_byte
                )
        finally:
            with self._lock:
                piece_place.written += num_written
                self._num_putting -= 1
                self._putting_ended.notify_all()

    def close(self) -> None:
        """Check that every byte was written.

        The files are whole for every process from here on, whatever is killed; when they reach the
        disk is left to the system, as waiting for it would take longer than the merge.

        Raises:
            CheckpointError: some were not.
        """
        short = [name for name, place in self._places.items() if place.written != place.num_bytes]
        self.release()
        if short:
            raise CheckpointError(f"{self.folder}: {short[0]} was not written whole.")

    def release(self) -> None:
        """Close the files without asking whether all was written, as where several write."""
        with self._lock:
            self._is_released = True
            # The system gives a closed file's number to the next one that is opened, into which a
            # thread that is writing still would go on.
            self._putting_ended.wait_for(lambda: not self._num_putting)
            while self._descriptors:
                os.close(self._descriptors.pop())

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.release()


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its length, and its blocks where the file system can do so at once.

    Then the room is there whatever others write meanwhile, and writing costs a third less processor
    time. The system's own call is used, as Python's would write zeros where there is none.
    """
    os.ftruncate(descriptor, size)
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None or size == 0:
        return
    number = ctypes.c_int64
    if fallocate(descriptor, 0, number(0), number(size)) and ctypes.get_errno() in _NO_ROOM:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def bytes_text(count: float) -> str:
    """A number of bytes in the unit that suits it.

    >>> bytes_text(1_234_000_000), bytes_text(68_456_000), bytes_text(512)
    ('1.23 GB', '68.5 MB', '0.5 kB')
    """
    for unit_bytes, unit_name, num_digits in ((1e9, "GB", 2), (1e6, "MB", 1)):
        if count >= unit_bytes:
            return f"{count / unit_bytes:.{num_digits}f} {unit_name}"
    return f"{count / 1e3:.1f} kB"


def parse_bytes(text: str, where: str) -> int:
    """A number of bytes as it is written, in decimal units as on the hubs.

    Raises:
        ConfigError: it is none, or less than a megabyte.

    >>> parse_bytes("5GB", ""), parse_bytes("1.5 GB", ""), parse_bytes("200MB", "")
    (5000000000, 1500000000, 200000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])B", text.strip(), re.IGNORECASE)
    num_bytes = 0 if match is None else float(match[1]) * _UNITS[match[2].upper()]
    if not 1e6 <= num_bytes < 1e15:
        raise ConfigError(f"{where} {text}: give a size of at least 1MB, such as 5GB or 500MB.")
    return int(num_bytes)


_UNITS = {"M": 1e6, "G": 1e9, "T": 1e12}


def dtype_name(dtype: torch.dtype) -> str:
    """The format's name of a torch type, such as `BF16`."""
    torch_word = str(dtype).removeprefix("torch.")
    return next(name for name, torch_name in TORCH_NAMES.items() if torch_name == torch_word)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor of any type, without a copy."""
    import torch

    flat_tensor = tensor.detach().contiguous().view(-1)
    if not flat_tensor.numel():
        return memoryview(b"")
    byte_array: Any = flat_tensor.view(torch.uint8).numpy()
    return memoryview(byte_array)
