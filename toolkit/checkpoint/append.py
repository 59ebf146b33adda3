"""One safetensors file, written while the shapes of its tensors are still being found."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from torch import Tensor
from typing_extensions import Self

from toolkit.checkpoint.write import dtype_name, tensor_bytes

_ENTRY_BYTES = 160
"""More than type, shape and offsets of one tensor take in a header."""


class AppendWriter:
    """Appends tensors to one file and holds none: room for the header is left at its beginning.

    Use as a context manager; the header is written on leaving it normally.

    Args:
        path: of the file, which must not exist.
        names: of all tensors that may be appended.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        reserved = 64 + sum(len(json.dumps(name)) + _ENTRY_BYTES for name in names)
        self._header_bytes = -(-reserved // 8) * 8  # tensors begin at a multiple of eight bytes
        self._allowed = set(names)
        self._header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        self._file = path.open("xb")
        self._file.seek(8 + self._header_bytes)

    def append(self, name: str, tensor: Tensor) -> None:
        """Write one tensor in its own type."""
        if name not in self._allowed or name in self._header:
            raise ValueError(f"{name}: was not announced, or is there already")
        tensor_data = tensor_bytes(tensor)
        self._header[name] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [self._end, self._end + len(tensor_data)],
        }
        self._file.write(tensor_data)
        self._end += len(tensor_data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The header comes last: a file that was broken off begins with zeros, which no reader takes
        # for a header.
        with self._file as file:
            if kind is None:
                text = json.dumps(self._header, separators=(",", ":")).encode()
                file.seek(0)
                # The format allows blanks after the header.
                file.write(struct.pack("<Q", self._header_bytes) + text.ljust(self._header_bytes))
