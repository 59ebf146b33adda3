"""Package artifacts: fetched once by pinned hash, kept in a cache, read without being installed."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import io
import lzma
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from toolkit.data.config import ArtifactSection
from toolkit.data.unpacked import FREE_BYTES, read_whole, refuse_bomb, unpack_seekable
from toolkit.errors import DataError
from toolkit.leftovers import scratch_folder
from toolkit.machine import cache_folder
from toolkit.stage import hash_file

ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError, struct.error, UnicodeError),
)
"""What a damaged archive makes Python's readers raise; the second row: unknown ways of packing,
encryption, cut headers."""

MAX_MEMBER_BYTES = 8 << 30
"""A member that claims more than this is refused unread: archives can lie about their size."""


def fetch_artifact(artifact: ArtifactSection) -> Path:
    """The cached file of an artifact, fetched through pip when it is not there.

    Returns:
        Path of a file whose sha256 is the pinned one.

    Raises:
        DataError: it is not cached and cannot be fetched, or its hash differs.
    """
    folder = cache_folder() / "artifacts" / artifact.sha256
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        if hash_file(path) == artifact.sha256:
            return path
        path.unlink()  # damaged in the cache; the pinned original is fetched again
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder / "download") as scratch:
        fetched = _pip_download(artifact, scratch)
        return fetched.rename(folder / fetched.name)


def _pip_download(artifact: ArtifactSection, folder: Path) -> Path:
    """Let pip fetch it: pip knows the user's index, proxy and certificates, and checks the hash."""
    pin = f"{artifact.package}=={artifact.version}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{artifact.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = [path for path in folder.iterdir() if path != requirements]
    if done.returncode == 0 and len(files) == 1 and hash_file(files[0]) == artifact.sha256:
        return files[0]
    if "DO NOT MATCH THE HASHES" in done.stderr or "hash" in done.stderr.lower():
        got = [
            line.split()[-1] for line in done.stderr.splitlines() if line.strip().startswith("Got")
        ]
        raise DataError(
            f"{pin}: the file on the index has sha256 {got[0] if got else '(not said)'}, "
            f"the recipe pins {artifact.sha256}; correct the recipe, or distrust the index."
        )
    reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise DataError(
        f"{pin}: is not in the cache and pip cannot fetch it "
        f"({reason[-1].removeprefix('ERROR: ') if reason else f'exit code {done.returncode}'}). "
        f"Connect to a package index and run again, or put the file into {_cache_name(artifact)}."
    )


def _cache_name(artifact: ArtifactSection) -> str:
    return str(cache_folder() / "artifacts" / artifact.sha256)


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
            whole = read_whole(stream, f"{archive.name}: {name}")
            with zipfile.ZipFile(io.BytesIO(whole)) as nested:
                for inner_name, inside in _zip_members(nested, name, len(whole), inner):
                    found = True
                    yield f"{name}//{inner_name}", inside
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive.name}: cannot be read as an archive ({error}).") from error
    if not found:
        raise DataError(f"{archive.name}: holds nothing that matches {pattern!r}; check `member`.")


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
    for _, stream in open_members(archive, glob.escape(found[0])):
        with target.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    return target


def _names(archive: Path) -> list[str]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return opened.namelist()
        with _open_tar(archive) as tar:
            return [member.name for member in tar if member.isfile()]
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive.name}: cannot be read as an archive ({error}).") from error


@contextlib.contextmanager
def _open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    with (
        archive.open("rb") as file,
        tarfile.open(fileobj=unpack_seekable(archive.name, file), mode="r:") as tar,
    ):
        yield tar


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield from _zip_members(opened, archive.name, archive.stat().st_size, pattern)
        return
    with _open_tar(archive) as tar:
        # Links and devices are passed over: only regular files are ever read.
        members = [m for m in tar if m.isfile() and fnmatch.fnmatchcase(m.name, pattern)]
        for member in members:
            if member.size > MAX_MEMBER_BYTES:
                raise DataError(
                    f"{archive.name}: {member.name} claims {member.size} bytes; refused."
                )
        in_order = sorted(members, key=lambda m: m.name)
        if in_order != members and sum(m.size for m in members) <= FREE_BYTES:
            # Each step back would unpack from the start; so few bytes are held instead.
            held = {id(member): _bytes_of(tar, member) for member in members}
            yield from ((member.name, io.BytesIO(held[id(member)])) for member in in_order)
            return
        for member in in_order:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file


def _bytes_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _zip_members(
    archive: zipfile.ZipFile, name: str, size: int, pattern: str
) -> Iterator[tuple[str, IO[bytes]]]:
    """Matching members of a zip file of so many bytes; members may share bytes, and lie."""
    names = sorted(archive.namelist())
    wanted = [n for n in names if fnmatch.fnmatchcase(n, pattern) and not n.endswith("/")]
    infos = [archive.getinfo(member) for member in wanted]
    refuse_bomb(name, size, sum(info.file_size for info in infos))
    for info in infos:
        refuse_bomb(f"{name}: {info.filename}", min(info.compress_size, size), info.file_size)
        if info.file_size > MAX_MEMBER_BYTES:
            raise DataError(f"{name}: {info.filename} claims {info.file_size} bytes; refused.")
        with archive.open(info) as stream:
            yield info.filename, stream
