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


def check_gguf(path: Path) -> dict[str, object]:
    """Refuse a file whose header claims more than its bytes can hold.

    Returns:
        Its values by name; in place of lists there is None.

    Raises:
        CheckpointError: it does, or is no GGUF file.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            return _check(path, file, file_bytes)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror}).") from error
    except (struct.error, EOFError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name}: its header is damaged or cut short ({error}); {_AGAIN}."
        ) from error


def _check(path: Path, file: IO[bytes], size: int) -> dict[str, object]:
    magic_bytes, version = file.read(4), _number(file, "<I")
    # Version 1 counted in 32 bits; of a big-endian file the version reads as another number.
    if magic_bytes != b"GGUF" or version not in (2, 3):
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
        value_name = _text(file, size)
        values[value_name] = _value(file, _number(file, "<I"), size, 0)
    tensors: list[tuple[str, int, int]] = []
    for _ in range(num_tensors):
        name = _text(file, size)
        num_dimensions = _number(file, "<I")
        # ggml itself has four; the bound only keeps the loop below short.
        if num_dimensions > 8:
            raise CheckpointError(f"{path.name}: {name} has {num_dimensions} dimensions; {_AGAIN}.")
        num_entries = 1
        for _ in range(num_dimensions):
            # Python's integers: in 64 bits the product of damaged sizes may wrap around to a small
            # one.
            num_entries *= _number(file, "<Q")
        num_bytes = _least_bytes(num_entries, kind=_number(file, "<I"))
        tensors.append((name, _number(file, "<Q"), num_bytes))
    alignment = values.get("general.alignment")
    if not isinstance(alignment, int) or alignment < 1:
        alignment = 32  # as ggml has it where the file does not say it
    data_start = -(-file.tell() // alignment) * alignment
    for name, offset, num_bytes in tensors:
        if data_start + offset + num_bytes > size:
            raise CheckpointError(
                f"{path.name}: {name} ends at byte {data_start + offset + num_bytes:,} of a file "
                f"of {size:,} bytes; {_AGAIN}."
            )
    _check_counts(path, values, num_tensors, size)
    return values


def _least_bytes(num_entries: int, kind: int) -> int:
    """How many bytes entries take; of a kind that is not known at least, at one bit each."""
    import gguf

    if kind not in gguf.GGML_QUANT_SIZES:
        return num_entries // 8
    block_entries, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(num_entries // block_entries * block_bytes)


def _check_counts(path: Path, values: dict[str, object], num_tensors: int, size: int) -> None:
    architecture_name = values.get("general.architecture")
    for count_key in _COUNTS:
        value_name = f"{architecture_name}.{count_key}"
        claimed_count = values.get(value_name)
        # Every layer has at least one tensor; every other count is of rows, at a bit or more each.
        upper_bound = num_tensors if count_key == "block_count" else 8 * size
        if isinstance(claimed_count, int) and not 0 <= claimed_count <= upper_bound:
            raise CheckpointError(
                f"{path.name}: {value_name} is {claimed_count:,}, more than its {num_tensors:,} "
                f"tensors of {size:,} bytes can have; {_AGAIN}."
            )


def _number(file: IO[bytes], code: str) -> int:
    number_bytes = file.read(struct.calcsize(code))
    return int(struct.unpack(code, number_bytes)[0])


def _text(file: IO[bytes], size: int) -> str:
    num_bytes = _number(file, "<Q")
    # Asked before reading: a claim of terabytes would be allocated first.
    if num_bytes > size - file.tell():
        raise EOFError(f"a text of {num_bytes:,} bytes")
    return file.read(num_bytes).decode("utf-8", "replace")


def _value(file: IO[bytes], kind: int, size: int, depth: int) -> Any:
    """A plain value; of arrays nothing, as they are only passed over."""
    if kind == _STRING:
        return _text(file, size)
    if kind != _ARRAY:
        if kind not in _SIZES:
            raise EOFError(f"a value of kind {kind}")
        value_bytes = file.read(_SIZES[kind])
        if len(value_bytes) < _SIZES[kind]:
            raise EOFError("a value")
        return struct.unpack(_FORMATS[kind], value_bytes)[0] if kind in _FORMATS else None
    inner_kind, num_values = _number(file, "<I"), _number(file, "<Q")
    # Lists within lists are allowed; deeper than llama.cpp ever writes is an attack on the stack.
    if depth > 3 or num_values * _SIZES.get(inner_kind, 8) > size - file.tell():
        raise EOFError(f"a list of {num_values:,} values")
    if inner_kind in _SIZES:
        file.seek(num_values * _SIZES[inner_kind], 1)
        return None
    for _ in range(num_values):
        _value(file, inner_kind, size, depth + 1)
    return None
