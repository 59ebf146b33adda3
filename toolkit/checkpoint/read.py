"""Reading checkpoints lazily: memory-mapped, every header checked against its file."""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.tensor_names import is_buffer, is_vocabulary
from toolkit.errors import CheckpointError
from toolkit.load_yaml import read_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TORCH_NAMES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types of the safetensors format that a merge can meet, and what torch calls them."""

_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def item_bytes(dtype: str) -> int:
    """Bytes of one entry of a stored type.

    >>> item_bytes("BF16"), item_bytes("F8_E4M3"), item_bytes("BOOL")
    (2, 1, 1)
    """
    bits_match = re.match(r"B?[FIU](\d+)", dtype)
    return int(bits_match[1]) // 8 if bits_match else 1


def is_float(dtype: str) -> bool:
    """Whether a stored type is a floating-point one."""
    return dtype.startswith(("F", "BF"))


def has_array(dtype: str) -> bool:
    """Whether numpy can hold a stored type, so that `Checkpoint.array` serves it."""
    return dtype in _NUMPY


INDEX_FILE = "model.safetensors.index.json"
"""Which tensor stands in which file, where a model has several."""

_MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_AGAIN = "download or copy the file again"


class Entries(Protocol):
    """Entries of a tensor, flat: an array, or what gathers one block at a time."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def size(self) -> int: ...

    def __getitem__(self, key: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        file: the file it is in.
        dtype: as stored, by the format's name.
        shape: sizes of its dimensions.
        start: first byte in the file.
        num_bytes: its size.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class Checkpoint:
    """A folder of safetensors files, opened; nothing is read before it is asked for.

    Args:
        folder: where its files stand.
        tensors: where each tensor lies, by name.
        unheld: embeddings and heads that its index names and no file holds; see `check_index`.
    """

    def __init__(
        self, folder: Path, tensors: dict[str, TensorInfo], unheld: frozenset[str] = frozenset()
    ) -> None:
        self.folder = folder
        self.unheld = unheld
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of their files."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies.

        Raises:
            CheckpointError: there is none of this name.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder}: has no tensor {name}.")
        return self._tensors[name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor: a read-only view of the mapped file."""
        info = self.info(name)
        return np.frombuffer(self._map(info.file), np.uint8, info.num_bytes, info.start)

    def array(self, name: str) -> Entries | None:
        """The entries of a tensor, flat, without a copy; bfloat16 as its bits, uint16.

        None for types that numpy cannot hold; `tensor` serves them.
        """
        numpy_type = _NUMPY.get(self.info(name).dtype)
        return None if numpy_type is None else self.raw(name).view(numpy_type)

    def tensor(self, name: str) -> Tensor:
        """A tensor in its stored type; its memory is the mapped file, so it must not be written."""
        import torch

        info = self.info(name)
        dtype: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype])
        if info.num_bytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        # from_numpy would warn of the read-only view; frombuffer of the map takes no copy either.
        num_entries = info.num_bytes // dtype.itemsize
        mapped_file = self._map(info.file)
        flat = torch.frombuffer(mapped_file, dtype=dtype, count=num_entries, offset=info.start)
        return flat.view(info.shape)

    def damaged_file(self, name: str) -> Path:
        """The file to blame for a tensor with entries that are not finite."""
        return self.info(name).file

    def give_back(self, name: str) -> None:
        """Let the system drop a tensor's pages: they are in the file, should they be needed."""
        info = self.info(name)
        page_bytes = mmap.PAGESIZE
        # Whole pages of this tensor alone: those at its ends belong to its neighbors too.
        first_page = -(-info.start // page_bytes) * page_bytes
        pages_bytes = (info.start + info.num_bytes - first_page) // page_bytes * page_bytes
        if pages_bytes > 0:
            self._map(info.file).madvise(mmap.MADV_DONTNEED, first_page, pages_bytes)

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as open_file:
                # Private and writable in name only: torch warns of memory it may not write to.
                new_map = mmap.mmap(open_file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._maps.setdefault(file, new_map)  # another thread may have been here too
        return self._maps[file]


def list_files(
    folder: Path, index: str, single: str, pattern: str
) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a model folder, and the index's tensor-to-file map where there is one.

    Args:
        folder: of the model.
        index: name of the index file.
        single: name of the file of a model in one; where the index does not name it, it decides, as
            transformers reads that one and no other.
        pattern: of the files to take where neither stands.

    Raises:
        CheckpointError: the index is damaged, or names files that are not there.
    """
    weight_map = _read_index(folder / index) if (folder / index).is_file() else {}
    file_names = sorted(set(weight_map.values()))
    if (folder / single).is_file() and single not in file_names:
        return [folder / single], {}
    if not (folder / index).is_file():
        return sorted(folder.glob(pattern)), {}
    for file_name in file_names:
        if not (folder / file_name).is_file():
            raise CheckpointError(
                f"{folder / index}: names {file_name}, which is not there; {_AGAIN}."
            )
    return [folder / file_name for file_name in file_names], weight_map


def list_safetensors(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files that hold a model's weights, and the index's map where it decides.

    Others may stand beside them: the same weights in Mistral's own names (`consolidated`), or an
    adapter that a trainer saved there.

    Raises:
        CheckpointError: the index is damaged, or names files that are not there.
    """
    files, weight_map = list_files(folder, INDEX_FILE, "model.safetensors", "*.safetensors")
    return [file for file in files if file.name != "adapter_model.safetensors"], weight_map


def lacks_shards(folder: Path) -> bool:
    """Whether weights of a model are missing beside others, as after a download that broke off."""
    kinds = (
        (INDEX_FILE, "model.safetensors", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin"),
    )
    for kind in kinds:
        try:
            files, weight_map = list_files(folder, *kind)
        except CheckpointError:
            return True
        if files:
            # The index may be what has not come yet; shards say themselves how many there are.
            numbered = (re.match(r"(.*)-\d+-of-(\d+)\.", file.name) for file in files)
            counts = Counter((match[1], int(match[2])) for match in numbered if match)
            return not weight_map and any(found < count for (_, count), found in counts.items())
    return False


def check_index(
    index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> frozenset[str]:
    """Check that the files hold what the index names.

    As transformers does, what a file holds counts, whatever the index says of it. Embeddings and
    heads that no file holds may be tied to another tensor; whether they are, the model's class
    decides (see `loadable`). Buffers that were never trained need no file.

    Returns:
        Those embeddings and heads.

    Raises:
        CheckpointError: another tensor is in no file.
    """
    missing_names = sorted(set(weight_map) - set(tensors))
    # Rotary frequencies and the like stand in older indexes; every model computes them itself.
    lost = [name for name in missing_names if not (is_vocabulary(name) or is_buffer(name, ()))]
    if lost:
        more = f" and {len(lost) - 1} more tensors" if len(lost) > 1 else ""
        raise CheckpointError(f"{index}: names {lost[0]}{more}, which no file holds; {_AGAIN}.")
    return frozenset(filter(is_vocabulary, missing_names))


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_object(path, CheckpointError, _AGAIN).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: cannot be read as an index (no weight_map); {_AGAIN}.")
    for name in weight_map.values():
        # An index comes with a download: "../" in it would read files of the user's as weights.
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path}: names a file outside its folder ({name!r}); refused.")
    return dict(weight_map)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Returns:
        Every tensor by name, in the order of their bytes.

    Raises:
        CheckpointError: the header contradicts itself or the file's size.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as open_file:
            length_field = open_file.read(8)
            if len(length_field) < 8:
                raise CheckpointError(f"{file}: has {size} bytes, not even a header; {_AGAIN}.")
            (header_bytes,) = struct.unpack("<Q", length_field)
            # Before it is read: a damaged number may ask for terabytes.
            if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{file}: claims a header of {header_bytes} bytes in a file of {size}; "
                    f"{_AGAIN}."
                )
            header = json.loads(open_file.read(header_bytes), object_pairs_hook=_unique_names)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: its header is not sound JSON ({error}); {_AGAIN}."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is not a mapping; {_AGAIN}.")
    header.pop("__metadata__", None)
    sorted_entries = [(name, *_entry(file, name, value)) for name, value in header.items()]
    # By the end too: a tensor without entries begins where the next one does, and comes first.
    sorted_entries.sort(key=lambda entry: (entry[3], entry[4]))
    # Without gaps and overlaps, as the format has it: a file that hides bytes, or shows some twice,
    # was not written by its library.
    tensors: dict[str, TensorInfo] = {}
    due_byte = 0
    for name, dtype, shape, begin, end_byte in sorted_entries:
        if begin != due_byte:
            raise CheckpointError(
                f"{file}: {name} begins at byte {begin} where {due_byte} is due; {_AGAIN}."
            )
        tensors[name] = TensorInfo(file, dtype, shape, 8 + header_bytes + begin, end_byte - begin)
        due_byte = end_byte
    if 8 + header_bytes + due_byte != size:
        raise CheckpointError(
            f"{file}: has {size} bytes, its header speaks of {8 + header_bytes + due_byte}; "
            f"{_AGAIN}."
        )
    return tensors


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    pairs_by_name = dict(pairs)
    # json keeps the last of equal keys without a word; another reader may keep the first.
    if len(pairs_by_name) < len(pairs):
        names = [name for name, _ in pairs]
        twice_name = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice_name!r} stands in it twice")
    return pairs_by_name


def _entry(file: Path, name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        stored_type, shape = value["dtype"], tuple(value["shape"])
        first_byte, end_byte = value["data_offsets"]
        is_sane = all(isinstance(n, int) and n >= 0 for n in (*shape, first_byte, end_byte))
        is_sane &= isinstance(stored_type, str)
    except (KeyError, TypeError, ValueError):
        is_sane = False
    if not is_sane:
        raise CheckpointError(f"{file}: {name} has a damaged entry in the header; {_AGAIN}.")
    if stored_type not in TORCH_NAMES:
        raise CheckpointError(
            f"{file}: {name} is stored as {stored_type!r}, which is not supported; known: "
            f"{', '.join(TORCH_NAMES)}."
        )
    num_bytes = math.prod(shape) * item_bytes(stored_type)
    if end_byte - first_byte != num_bytes:
        raise CheckpointError(
            f"{file}: {name} is {list(shape)} of {stored_type}, {num_bytes} bytes, "
            f"but spans {end_byte - first_byte}; {_AGAIN}."
        )
    return stored_type, shape, first_byte, end_byte


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights; see `list_safetensors`.

    Raises:
        CheckpointError: there are none.
    """
    weight_paths, _ = list_safetensors(folder)
    if not weight_paths:
        raise CheckpointError(
            f"{folder}: holds no .safetensors file; convert the model, or give another folder."
        )
    return weight_paths
