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


class _Streams:
    """xz or bz2 streams that follow each other as one. Python's readers pass over what is no
    stream after the first, damage included, and set no bound on the memory that xz may ask for."""

    def __init__(self, stream: IO[bytes], make: Callable[[], Any]) -> None:
        self._stream, self._make = stream, make
        self._unpacker = make()

    def read1(self, size: int) -> bytes:
        while True:
            if self._unpacker.eof:
                packed_data = self._unpacker.unused_data.lstrip(b"\0")
                while not packed_data and (more := self._stream.read(io.DEFAULT_BUFFER_SIZE)):
                    packed_data = more.lstrip(b"\0")  # streams of xz may be padded
                if not packed_data:
                    return b""
                self._unpacker = self._make()
            else:
                # One that still holds output back, for want of room, is asked again before it is
                # fed.
                wanted_bytes = io.DEFAULT_BUFFER_SIZE if self._unpacker.needs_input else 0
                packed_data = self._stream.read(wanted_bytes)
                # The unpackers of bz2 and xz just stop where a file was cut short; gzip's reader
                # says so.
                if wanted_bytes and not packed_data:
                    raise EOFError("it ends before its end-of-stream marker")
            if unpacked_data := self._unpacker.decompress(packed_data, size):
                return bytes(unpacked_data)


def _xz(stream: IO[bytes]) -> Any:
    most_memory = limit("XZ_BYTES")
    return _Streams(stream, lambda: lzma.LZMADecompressor(memlimit=most_memory))


OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": lambda stream: _Streams(stream, bz2.BZ2Decompressor),
    ".xz": _xz,
    ".zst": _zst,
}
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}


def unpack(name: str, stream: IO[bytes]) -> IO[bytes]:
    """A stream of what a file holds; itself where its ending is of no compression.

    Raises:
        EOFError: a compressed file is empty.
    """
    opener = OPENERS.get(PurePosixPath(name).suffix.lower())
    if opener is None:
        return stream
    if stream.seekable():
        # gzip's reader takes an empty file for an empty text; it is a download that failed.
        if not stream.read(1):
            raise EOFError("the compressed file is empty")
        stream.seek(0)
    return io.BufferedReader(_bounded(name, stream, opener), 1 << 20)


def unpack_seekable(name: str, file: IO[bytes]) -> IO[bytes]:
    """What a file that can be sought in holds, to be sought in too; itself where its first bytes
    are of no compression. Seeking backward unpacks from the start."""
    # By the first bytes and not the ending: `.tgz` and archives with a wrong name open as well.
    first_bytes = file.read(8)
    file.seek(0)
    compressed_ending = next(
        (
            compressed_ending
            for magic, compressed_ending in _MAGIC.items()
            if first_bytes.startswith(magic)
        ),
        None,
    )
    if compressed_ending is None:
        return file
    return io.BufferedReader(_Seekable(name, file, OPENERS[compressed_ending]), 1 << 20)


def _bounded(name: str, stream: IO[bytes], opener: Callable[[Any], Any]) -> _Bounded:
    counted_stream = _Counted(stream)
    return _Bounded(name, counted_stream, opener(counted_stream))


class _Seekable(io.RawIOBase):
    """What is unpacked, with a place in it; every byte on the way counts as unpacked."""

    def __init__(self, name: str, file: IO[bytes], opener: Callable[[IO[bytes]], Any]) -> None:
        self._parts = (name, file, opener)
        self._begin()

    def _begin(self) -> None:
        self._stream, self._at = _bounded(*self._parts), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        taken: int = self._stream.readinto(buffer)
        self._at += taken
        return taken

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END or target < 0:
            raise io.UnsupportedOperation("seeks from the start only")
        if target < self._at:
            self._parts[1].seek(0)
            self._begin()
        buffer = bytearray(1 << 20)
        while self._at < target:
            if not self.readinto(memoryview(buffer)[: target - self._at]):
                break
        return self._at


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
        try:
            data = self._stream.read1(len(buffer))  # what comes before damage is given
        except lzma.LZMAError as error:
            if "Memory usage limit" not in str(error):
                raise
            raise DataError(
                f"{self._name}: asks for too much memory to be unpacked; bytes: "
                f"{raise_hint('XZ_BYTES')}."
            ) from error
        buffer[: len(data)] = data
        self._given += len(data)
        refuse_bomb(self._name, self._packed.taken, self._given)
        return len(data)


def refuse_bomb(name: str, packed: int, unpacked: int) -> None:
    """Refuse a file of which so few bytes unpack to so many.

    Raises:
        DataError: they do.
    """
    most_ratio = limit("UNPACKED_RATIO")
    if unpacked > FREE_BYTES and unpacked > most_ratio * packed:
        raise DataError(
            f"{name}: {size_words(packed)} of it unpack to more than {size_words(unpacked)}; times "
            f"its size: {raise_hint('UNPACKED_RATIO')}."
        )


def read_whole(stream: IO[bytes], name: str) -> bytes:
    """All bytes of a document.

    Raises:
        DataError: it is larger than the limit.
    """
    most_bytes = limit("DOCUMENT_BYTES")
    # One byte more than allowed shows that there is more, and no more of it is read.
    document_bytes = stream.read(most_bytes + 1)
    if len(document_bytes) > most_bytes:
        raise DataError(f"{name}: is too large a document; bytes: {raise_hint('DOCUMENT_BYTES')}.")
    return document_bytes
