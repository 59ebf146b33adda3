"""Compressed files as streams of their bytes, which end where a bomb would begin."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import IO, Any

from toolkit.errors import DataError
from toolkit.limits import limit, raise_hint, size_words

FREE_BYTES = 64 << 20
"""So much may be unpacked of any file, however small it is."""


def _zst(stream: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa  # its reader tells a file that was cut short; zstandard's does not

    return io.BufferedReader(pa.input_stream(stream, compression="zstd"))


OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zst,
}


def unpack(name: str, stream: IO[bytes]) -> IO[bytes]:
    """A stream of what a file holds; itself where its ending is of no compression.

    Raises:
        EOFError: a compressed file is empty.
    """
    opener = OPENERS.get(PurePosixPath(name).suffix.lower())
    if opener is None:
        return stream
    if stream.seekable():
        if not stream.read(1):
            raise EOFError("the compressed file is empty")
        stream.seek(0)
    packed = _Counted(stream)
    return io.BufferedReader(_Bounded(name, packed, opener(packed)), 1 << 20)  # type: ignore[arg-type]


class _Counted(io.RawIOBase):
    """A stream that counts the bytes that are taken from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.taken += len(data)
        return len(data)


class _Bounded(io.RawIOBase):
    """What is unpacked; refused once it is too much for what was taken."""

    def __init__(self, name: str, packed: _Counted, stream: Any) -> None:
        self._name, self._packed, self._stream = name, packed, stream
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # what comes before damage is given
        buffer[: len(data)] = data
        self._given += len(data)
        refuse_bomb(self._name, self._packed.taken, self._given)
        return len(data)


def refuse_bomb(name: str, packed: int, unpacked: int) -> None:
    """Refuse a file of which so few bytes unpack to so many.

    Raises:
        DataError: they do.
    """
    ratio = limit("UNPACKED_RATIO")
    if unpacked > FREE_BYTES and unpacked > ratio * packed:
        raise DataError(
            f"{name}: {size_words(packed)} of it unpack to more than {size_words(unpacked)}; times "
            f"its size: {raise_hint('UNPACKED_RATIO')}."
        )


def read_whole(stream: IO[bytes], name: str) -> bytes:
    """All bytes of a document.

    Raises:
        DataError: it is larger than the limit.
    """
    most = limit("DOCUMENT_BYTES")
    data = stream.read(most + 1)
    if len(data) > most:
        raise DataError(f"{name}: is too large a document; bytes: {raise_hint('DOCUMENT_BYTES')}.")
    return data
