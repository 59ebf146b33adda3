"""The header of a GGUF file, looked at before a library makes room for what it claims."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Any

from toolkit.errors import CheckpointError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the plain kinds of values, by their number."""

_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_STRING, _ARRAY = 8, 9
_AGAIN = "fetch it again"
_COUNTS = (
    *("block_count", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "expert_count", "vocab_size", "attention.key_length"),
)


def check_gguf(path: Path) -> dict[str, Any]:
    """Refuse a file whose header claims more than its bytes can hold.

    Returns:
        Its values by name; in place of lists there is None.

    Raises:
        CheckpointError: it does, or is no GGUF file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _check(path, file, size)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror}).") from error
    except (struct.error, EOFError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name}: its header is damaged or cut short ({error}); {_AGAIN}."
        ) from error


def _check(path: Path, file: IO[bytes], size: int) -> dict[str, Any]:
    magic, version = file.read(4), _number(file, "<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise CheckpointError(f"{path.name}: is no GGUF file of version 2 or 3; {_AGAIN}.")
    num_tensors, num_values = _number(file, "<Q"), _number(file, "<Q")
    # A tensor's entry takes at least 28 bytes, a value's 13.
    if 28 * num_tensors + 13 * num_values > size:
        raise CheckpointError(
            f"{path.name}: claims {num_tensors:,} tensors and {num_values:,} values in a file of "
            f"{size:,} bytes; {_AGAIN}."
        )
    values = {}
    for _ in range(num_values):
        name = _text(file, size)
        values[name] = _value(file, _number(file, "<I"), size, 0)
    for _ in range(num_tensors):
        name = _text(file, size)
        dimensions = _number(file, "<I")
        if dimensions > 8:
            raise CheckpointError(f"{path.name}: {name} has {dimensions} dimensions; {_AGAIN}.")
        entries = 1
        for _ in range(dimensions):
            entries *= _number(file, "<Q")
        _number(file, "<I")
        # One bit an entry is less than any kind takes.
        if entries > 8 * size or _number(file, "<Q") > size:
            raise CheckpointError(
                f"{path.name}: {name} is larger than the file of {size:,} bytes; {_AGAIN}."
            )
    _check_counts(path, values, num_tensors, size)
    return values


def _check_counts(path: Path, values: dict[str, Any], num_tensors: int, size: int) -> None:
    kind = values.get("general.architecture")
    for count in _COUNTS:
        name = f"{kind}.{count}"
        value = values.get(name)
        most = num_tensors if count == "block_count" else 8 * size
        if isinstance(value, int) and not 0 <= value <= most:
            raise CheckpointError(
                f"{path.name}: {name} is {value:,}, more than its {num_tensors:,} tensors of "
                f"{size:,} bytes can have; {_AGAIN}."
            )


def _number(file: IO[bytes], code: str) -> int:
    data = file.read(struct.calcsize(code))
    return int(struct.unpack(code, data)[0])


def _text(file: IO[bytes], size: int) -> str:
    length = _number(file, "<Q")
    if length > size - file.tell():
        raise EOFError(f"a text of {length:,} bytes")
    return file.read(length).decode("utf-8", "replace")


def _value(file: IO[bytes], kind: int, size: int, depth: int) -> Any:
    """A plain value; of arrays nothing, as they are only passed over."""
    if kind == _STRING:
        return _text(file, size)
    if kind != _ARRAY:
        if kind not in _SIZES:
            raise EOFError(f"a value of kind {kind}")
        data = file.read(_SIZES[kind])
        if len(data) < _SIZES[kind]:
            raise EOFError("a value")
        return struct.unpack(_FORMATS[kind], data)[0] if kind in _FORMATS else None
    inner, count = _number(file, "<I"), _number(file, "<Q")
    if depth > 3 or count * _SIZES.get(inner, 8) > size - file.tell():
        raise EOFError(f"a list of {count:,} values")
    if inner in _SIZES:
        file.seek(count * _SIZES[inner], 1)
        return None
    for _ in range(count):
        _value(file, inner, size, depth + 1)
    return None
