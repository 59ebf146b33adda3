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
    cache_entry = cache_folder() / "artifacts" / artifact.sha256
    for cached_file in sorted(cache_entry.glob("*")) if cache_entry.is_dir() else []:
        if cached_file.name.startswith("."):
            continue
        if hash_file(cached_file) == artifact.sha256:
            return cached_file
        cached_file.unlink()  # damaged in the cache; the pinned original is fetched again
    cache_entry.mkdir(parents=True, exist_ok=True)
    # Fetched on the same disk and renamed: no other process ever sees half a file.
    with scratch_folder(cache_entry / "download") as scratch:
        fetched_file = _pip_download(artifact, scratch)
        return fetched_file.rename(cache_entry / fetched_file.name)


def _pip_download(artifact: ArtifactSection, folder: Path) -> Path:
    """Let pip fetch it: pip knows the user's index, proxy and certificates, and checks the hash."""
    pinned_package = f"{artifact.package}=={artifact.version}"
    requirements_file = folder / "requirements.txt"
    requirements_file.write_text(
        f"{pinned_package} --hash=sha256:{artifact.sha256}\n", encoding="utf-8"
    )
    pip_command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    pip_command += ["--quiet", "--no-deps", "--require-hashes"]
    pip_command += ["-r", str(requirements_file), "-d", str(folder)]
    pip_result = subprocess.run(pip_command, capture_output=True, text=True, check=False)
    fetched_files = [path for path in folder.iterdir() if path != requirements_file]
    if (
        pip_result.returncode == 0
        and len(fetched_files) == 1
        and hash_file(fetched_files[0]) == artifact.sha256
    ):
        # pip's own check, made again: an index that serves another file under a pinned hash would
        # be caught here.
        return fetched_files[0]
    if "DO NOT MATCH THE HASHES" in pip_result.stderr or "hash" in pip_result.stderr.lower():
        lines = map(str.strip, pip_result.stderr.splitlines())
        hashes = (line.split()[-1] for line in lines if line.startswith("Got"))
        found_hash = next(hashes, "(not said)")
        raise DataError(
            f"{pinned_package}: the file on the index has sha256 {found_hash}, "
            f"the recipe pins {artifact.sha256}; correct the recipe, or distrust the index."
        )
    error_lines = [line for line in pip_result.stderr.splitlines() if line.startswith("ERROR")]
    exit_text = f"exit code {pip_result.returncode}"
    reason = error_lines[-1].removeprefix("ERROR: ") if error_lines else exit_text
    raise DataError(
        f"{pinned_package}: is not in the cache and pip cannot fetch it ({reason}). "
        f"Connect to a package index and run again, or put the file into {_cache_name(artifact)}."
    )


def _cache_name(artifact: ArtifactSection) -> str:
    return str(cache_folder() / "artifacts" / artifact.sha256)


class NothingMatchesError(DataError):
    """An archive that holds nothing of the name or pattern asked for."""


def open_members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Open matching members of an archive one by one, in sorted order; nothing is unpacked.

    Args:
        archive: a `.zip`, `.whl`, `.tar`, `.tar.gz` or like file.
        pattern: member path with `*`; `outer.zip//inner.csv` descends into a nested zip.

    Yields:
        Name and stream; the stream is valid until the next one is asked for.

    Raises:
        DataError: the archive cannot be read.
        NothingMatchesError: nothing in it matches.
    """
    outer_pattern, _, inner_pattern = pattern.partition("//")
    has_match = False
    try:
        for name, member_stream in _members(archive, outer_pattern):
            if not inner_pattern:
                has_match = True
                yield name, member_stream
                continue
            # A zip file's table stands at its end, so one in another is held whole to be sought in.
            nested_bytes = read_whole(member_stream, f"{archive.name}: {name}")
            with zipfile.ZipFile(io.BytesIO(nested_bytes)) as nested_archive:
                for inner_name, inside in _zip_members(
                    nested_archive, name, len(nested_bytes), inner_pattern
                ):
                    has_match = True
                    yield f"{name}//{inner_name}", inside
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive.name}: cannot be read as an archive ({error}).") from error
    if not has_match:
        raise NothingMatchesError(
            f"{archive.name}: holds nothing that matches {pattern!r}; names count from the top of "
            "the archive."
        )


def extract_member(archive: Path, pattern: str, folder: Path) -> Path:
    """Write the one member that matches `pattern` into `folder`, under its own last name.

    Raises:
        DataError: nothing or more than one thing matches.
    """
    matching_names = [name for name in list_members(archive) if fnmatch.fnmatchcase(name, pattern)]
    if len(matching_names) != 1:
        raise DataError(
            f"{archive.name}: {len(matching_names)} members match {pattern!r}; `member` must name "
            "one file."
        )
    target_path = folder / PurePosixPath(matching_names[0]).name
    # Escaped, as a bracket in a member's name would be read as a pattern.
    for _, stream in open_members(archive, glob.escape(matching_names[0])):
        with target_path.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    return target_path


def list_members(archive: Path) -> list[str]:
    """Names of an archive's files.

    Raises:
        DataError: it cannot be read as an archive.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return [name for name in opened.namelist() if not name.endswith("/")]
        with _open_tar(archive) as tar:
            return [member.name for member in tar if member.isfile()]
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive.name}: cannot be read as an archive ({error}).") from error


@contextlib.contextmanager
def _open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    with (
        archive.open("rb") as file,
        # `r:` means not compressed: tarfile's own unpacking has no bound on what comes out.
        tarfile.open(fileobj=unpack_seekable(archive.name, file), mode="r:") as tar,
    ):
        yield tar


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield from _zip_members(opened, archive.name, archive.stat().st_size, pattern)
        return
    with _open_tar(archive) as tar:
        # Sorted by name, as documents get their ids from the order; a tar file has any.
        # Links and devices are passed over: only regular files are ever read.
        matching_members = [m for m in tar if m.isfile() and fnmatch.fnmatchcase(m.name, pattern)]
        for member in matching_members:
            if member.size > MAX_MEMBER_BYTES:
                raise DataError(
                    f"{archive.name}: {member.name} claims {member.size} bytes; refused."
                )
        sorted_members = sorted(matching_members, key=lambda m: m.name)
        if (
            sorted_members != matching_members
            and sum(m.size for m in matching_members) <= FREE_BYTES
        ):
            # Each step back would unpack from the start; so few bytes are held instead.
            held_bytes = {id(member): _bytes_of(tar, member) for member in matching_members}
            yield from (
                (member.name, io.BytesIO(held_bytes[id(member)])) for member in sorted_members
            )
            return
        for member in sorted_members:
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
    member_names = sorted(archive.namelist())
    matching_names = [
        n for n in member_names if fnmatch.fnmatchcase(n, pattern) and not n.endswith("/")
    ]
    member_infos = [archive.getinfo(member) for member in matching_names]
    # All together first: members that share their packed bytes look harmless one by one.
    refuse_bomb(name, size, sum(member_info.file_size for member_info in member_infos))
    for member_info in member_infos:
        refuse_bomb(
            f"{name}: {member_info.filename}",
            # A header may claim more packed bytes than the file has.
            min(member_info.compress_size, size),
            member_info.file_size,
        )
        if member_info.file_size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{name}: {member_info.filename} claims {member_info.file_size} bytes; refused."
            )
        with archive.open(member_info) as stream:
            yield member_info.filename, stream
