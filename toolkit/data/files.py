"""Where files are: archives, local globs, object stores; opened one by one."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import itertools
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from toolkit.data.artifacts import ARCHIVE_ERRORS, fetch_artifact, open_members
from toolkit.data.config import SourceSection
from toolkit.data.unpacked import OPENERS, unpack
from toolkit.errors import DataError
from toolkit.file_hashes import known_hash
from toolkit.shipped import shipped_file
from toolkit.stage import hash_bytes

_WHOLE_HASH_BYTES = 4 << 30
"""Local files up to this size are hashed whole, once for each change (`known_hash`); of larger ones
the size, the time of change and 64 samples count."""

ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Local files that are read as the folder that was packed into them."""

_SAMPLES = 64
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, ready to be opened.

    Attributes:
        key: short name, the same on every machine; it begins the ids of the file's documents.
        name: path or member name, for its ending and for messages.
        open: gives the stream of its bytes, decompressed.
    """

    key: str
    name: str
    open: Callable[[], Any]


def source_files(source: SourceSection) -> Iterator[SourceFile]:
    """Files of a source in a stable order; each must be read before the next is asked for.

    Raises:
        DataError: nothing is where the source says.
    """
    if source.artifact is not None:
        archive = fetch_artifact(source.artifact)
        stem_counts: Counter[str] = Counter()
        for name, stream in open_members(archive, source.artifact.member):
            if _is_excluded(name, source):
                continue
            file_stem = _without_endings(PurePosixPath(name.rpartition("//")[2]).name)
            # The archive is pinned, so counting is as stable as the name.
            stem_counts[file_stem] += 1
            count = stem_counts[file_stem]
            key = file_stem if count == 1 else f"{file_stem}~{count}"
            yield SourceFile(key, name, partial(_decompressed, name, stream))
    # Keys begin document ids, and ids decide splits: no two files of a source may share one.
    seen_keys: set[str] = set()
    seen_members: set[tuple[Path, str]] = set()
    paths_by_pattern = local_paths(source)
    for pattern in dict.fromkeys(source.files or ()):
        if "://" in pattern:
            yield from _remote_files(pattern, source, seen_keys)
            continue
        for path in paths_by_pattern[pattern]:
            if is_archive(path.name):
                yield from _packed_files(path, pattern, source, seen_keys, seen_members)
            else:
                key = _unlike(_key(path, pattern), path.name, seen_keys)
                yield SourceFile(key, path.as_posix(), partial(_local, path))


def is_archive(name: str) -> bool:
    """Whether a file is read as the folder that was packed into it.

    >>> [is_archive(name) for name in ("a.ZIP", "a.tar.gz", "a.docx", "a.jsonl.gz")]
    [True, True, False, False]
    """
    return name.lower().endswith(ARCHIVE_ENDINGS)


def split_pattern(pattern: str) -> tuple[str, str | None]:
    """Where files are, and which of an archive are meant; None for all that it holds.

    >>> split_pattern("in/reports.zip//2023/*.pdf")
    ('in/reports.zip', '2023/*.pdf')
    >>> split_pattern("in//letters/*.txt")
    ('in//letters/*.txt', None)
    """
    path_pattern, separator, member_pattern = pattern.partition("//")
    if separator and member_pattern and is_archive(path_pattern):
        return path_pattern, member_pattern
    return pattern, None


def _packed_files(
    path: Path,
    pattern: str,
    source: SourceSection,
    seen_keys: set[str],
    seen_members: set[tuple[Path, str]],
) -> Iterator[SourceFile]:
    """Files of an archive, each once; hidden ones only where a pattern names them, as in folders.

    Keys are those of a folder that was not packed: of one archive the places in it, of several
    below its own name.
    """
    path_pattern, member_pattern = split_pattern(pattern)
    is_literal = not any(sign in path_pattern for sign in "*?[") and not Path(path_pattern).is_dir()
    folder_key = PurePosixPath() if is_literal else PurePosixPath(_key(path, path_pattern))
    try:
        for name, stream in open_members(path, member_pattern or "*"):
            if _is_excluded(name, source) or (path.resolve(), name) in seen_members:
                continue
            if member_pattern is None and is_hidden(name):
                continue
            seen_members.add((path.resolve(), name))
            place = folder_key / name.replace("//", "/")
            key = (place.parent / _without_endings(place.name)).as_posix()
            key = _unlike(key, place.name, seen_keys)
            yield SourceFile(
                key, f"{path.as_posix()}//{name}", partial(_decompressed, name, stream)
            )
    except DataError as error:
        if not isinstance(error.__cause__, ARCHIVE_ERRORS):
            raise
        # Whoever reads decides whether damage is left out or stops everything, as of other files.
        yield SourceFile(path.stem, path.as_posix(), partial(_raise, error.__cause__))


def _raise(error: BaseException) -> NoReturn:
    raise error


def is_hidden(name: str) -> bool:
    """Whether a member lies below a hidden folder, or is what macOS puts beside files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def local_paths(source: SourceSection) -> dict[str, list[Path]]:
    """Files of a source that match each local pattern, sorted; each file once, however many
    patterns or links lead to it. An archive is one file, for each part of it that is asked for.

    Raises:
        DataError: there are none for a pattern.
    """
    seen_paths: set[tuple[Path, str | None]] = set()
    paths_by_pattern: dict[str, list[Path]] = {}
    for pattern in dict.fromkeys(source.files or ()):
        if "://" in pattern:
            continue
        path_pattern, member_pattern = split_pattern(pattern)
        paths_by_pattern[pattern] = []
        for path in _matching_files(path_pattern, source):
            if (part := (path.resolve(), member_pattern)) not in seen_paths:
                seen_paths.add(part)
                paths_by_pattern[pattern].append(path)
        paths_by_pattern[pattern].sort(key=str)
    return paths_by_pattern


def _matching_files(pattern: str, source: SourceSection) -> list[Path]:
    """Those reached without a link first, then those in the fewest folders."""
    wild_pattern = _expand(pattern)
    literal_root = _literal_root(wild_pattern)
    matching_paths = [
        Path(path)
        for path in expand_pattern(wild_pattern)
        if Path(path).is_file() and not _is_excluded(os.path.relpath(path, literal_root), source)
    ]
    for path in matching_paths:
        # Python holds such bytes as lone surrogates, which no id, hash or JSON file takes later on.
        if not path.as_posix().isascii() and _NOT_UTF8.search(path.as_posix()):
            shown_name = path.as_posix().encode("utf-8", "backslashreplace").decode()
            raise DataError(
                f"{shown_name}: its name is not UTF-8; rename it, for instance with convmv."
            )
    if not matching_paths:
        raise DataError(_not_there(pattern, wild_pattern))
    # `local_paths` keeps the first of several paths to a file, so the plainest comes first.
    return sorted(
        matching_paths,
        key=lambda path: (path.resolve() != path.absolute(), len(path.parts), str(path)),
    )


def _not_there(pattern: str, wild: str) -> str:
    if Path(_literal_root(wild)).is_dir() and any(sign in wild for sign in "*?["):
        return f"{pattern}: no file below {_literal_root(wild)} matches it."
    return f"{pattern}: no such file; paths count from the folder you run in."


def local_bytes(source: SourceSection) -> int:
    """Size of the local files of a source, as they lie there; 0 where there are none."""
    return sum(path.stat().st_size for paths in local_paths(source).values() for path in paths)


def input_hashes(sources: Mapping[str, SourceSection]) -> dict[str, str]:
    """What tells whether a source's files changed; artifacts and hubs are pinned in the recipe.

    Files of one pattern are hashed together where they are many, so that the manifest stays small.
    """
    hashes: dict[str, str] = {}
    for name, source in sources.items():
        # Such a list holds the hash of each filing, so its own hash stands for all of them.
        if source.edgar is not None and source.edgar.filings is not None:
            hashes[f"{name}/{source.edgar.filings}"] = _hash(Path(source.edgar.filings))
        seen_keys: set[str] = set()
        paths_by_pattern = local_paths(source)
        for pattern in dict.fromkeys(source.files or ()):
            if "://" in pattern:
                hashes_by_key = _remote_marks(pattern)
            else:
                hashes_by_key = {
                    _unlike(
                        _key(path, split_pattern(pattern)[0]) + path.suffix, path.name, seen_keys
                    ): _hash(path)
                    for path in paths_by_pattern[pattern]
                }
            if len(hashes_by_key) <= 16:
                hashes.update({f"{name}/{key}": value for key, value in hashes_by_key.items()})
            else:
                hash_lines = "\n".join(
                    f"{key} {value}" for key, value in sorted(hashes_by_key.items())
                )
                hashes[f"{name}/{pattern} ({len(hashes_by_key)} files)"] = hash_bytes(
                    hash_lines.encode()
                )
    return hashes


def _hash(path: Path) -> str:
    num_bytes = path.stat().st_size
    if num_bytes <= _WHOLE_HASH_BYTES:
        return known_hash(path)
    # The time of change as well: 64 samples of a file this large miss most changes.
    digest = hashlib.sha256(f"{num_bytes} {path.stat().st_mtime_ns}".encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            # Evenly spaced, with the first and the last megabyte of the file among them.
            file.seek((num_bytes - (1 << 20)) * number // (_SAMPLES - 1))
            digest.update(file.read(1 << 20))
    return "sampled:" + digest.hexdigest()


def _expand(pattern: str) -> str:
    """A local pattern as `expand_pattern` takes it: `~` and `{stdlib}` are folders, a folder means
    all files below it, and brackets that stand in the name of something are no wildcards."""
    pattern = pattern.replace("{stdlib}", sysconfig.get_paths()["stdlib"])
    if not Path(pattern).exists() and (shipped := shipped_file(pattern)) is not None:
        return glob.escape(str(shipped))
    pattern = os.path.expanduser(pattern)  # noqa: PTH111  (Path's raises where it knows no user)
    # A file that is called `report[1].pdf` is meant as written, where there is one.
    if "[" in pattern:
        literal_pattern = pattern.replace("[", "[[]")
        if next(iter(expand_pattern(literal_pattern)), None) is not None:
            pattern = literal_pattern
    if Path(pattern.replace("[[]", "[")).is_dir():
        pattern = f"{pattern}/**"
    return pattern


def expand_pattern(pattern: str) -> Iterator[str]:
    """What matches a pattern; `**` walks through every folder once, whatever links lead back to it
    (`glob` follows a link that leads back until the system refuses)."""
    path_parts = PurePosixPath(pattern).parts
    if "**" not in path_parts:
        yield from sorted(glob.iglob(pattern))
        return
    wild_place = path_parts.index("**")
    later_parts = path_parts[wild_place + 1 :] or ("*",)
    base_folders = (
        sorted(glob.iglob(str(PurePosixPath(*path_parts[:wild_place])))) if wild_place else ["."]
    )
    for base in base_folders:
        for folder in _walk_once(Path(base)):
            yield from expand_pattern(str(PurePosixPath(glob.escape(str(folder)), *later_parts)))


def _walk_once(base: Path) -> Iterator[Path]:
    """A folder and all below it, hidden ones left out; linked ones after all that are not."""
    waiting_folders, linked_folders = [base], list[Path]()
    seen_inodes: set[tuple[int, int]] = set()
    while waiting_folders or linked_folders:
        # Breadth first, links last: a folder is reached by its plainest path, as its key is made of
        # that.
        folder = (waiting_folders or linked_folders).pop(0)
        try:
            folder_status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # no folder, a link to nothing, or not to be read: nothing matches there
            continue
        # By inode, as paths of linked folders never end.
        if (folder_status.st_dev, folder_status.st_ino) in seen_inodes:
            continue
        seen_inodes.add((folder_status.st_dev, folder_status.st_ino))
        yield folder
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir():
                (linked_folders if entry.is_symlink() else waiting_folders).append(
                    folder / entry.name
                )


def _literal_root(pattern: str) -> str:
    """The folder above the first wildcard, or the file's own folder."""
    parts = PurePosixPath(pattern).parts
    for index, part in enumerate(parts):
        if any(sign in part.replace("[[]", "") for sign in "*?["):
            return str(PurePosixPath(*parts[:index])).replace("[[]", "[")
    return str(PurePosixPath(pattern).parent).replace("[[]", "[")


def _key(path: Path, pattern: str) -> str:
    relative = PurePosixPath(os.path.relpath(path, _literal_root(_expand(pattern))))
    return (relative.parent / _without_endings(relative.name)).as_posix()


def _unlike(key: str, name: str, seen: set[str]) -> str:
    """A key that no file of the source has yet: of files that differ in their ending (`a.c`,
    `a.h`) or stand below two patterns, the later ones have their whole names, or a number.

    >>> seen: set[str] = set()
    >>> [_unlike("src/a", name, seen) for name in ("a.c", "a.h", "a.h")]
    ['src/a', 'src/a.h', 'src/a.h~2']
    """
    whole_key = key.rpartition("/")[0] + "/" + name if "/" in key else name
    numbered_keys = (f"{whole_key}~{number}" for number in itertools.count(2))
    key = next(
        text for text in itertools.chain((key, whole_key), numbered_keys) if text not in seen
    )
    seen.add(key)
    return key


def _without_endings(name: str) -> str:
    path = PurePosixPath(name)
    # Both endings go: a file that is compressed later keeps its key, and its documents their
    # splits.
    return PurePosixPath(path.stem).stem if path.suffix.lower() in OPENERS else path.stem


def _is_excluded(name: str, source: SourceSection) -> bool:
    base_name = name.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(base_name, pattern)
        for pattern in source.exclude
    )


@contextmanager
def _local(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as raw, _decompressed(path.name, raw) as stream:
            yield stream
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


@contextmanager
def _decompressed(name: str, stream: IO[bytes]) -> Iterator[IO[bytes]]:
    yield unpack(name, stream)


def ending(name: str) -> str:
    """The ending that tells the format, such as `.jsonl` of `a/b.jsonl.gz`.

    >>> ending("a/b.jsonl.gz")
    '.jsonl'
    """
    path = PurePosixPath(name)
    if path.suffix.lower() in OPENERS:
        path = PurePosixPath(path.stem)
    return path.suffix.lower()


def _filesystem(pattern: str) -> tuple[Any, list[str]]:
    import fsspec

    try:
        file_system, path = fsspec.core.url_to_fs(pattern)
        file_names = (
            sorted(file_system.glob(path)) if any(sign in path for sign in "*?[") else [path]
        )
        # A path without wildcards has not been looked up yet.
        is_there = bool(file_names) and file_system.exists(file_names[0])
    except ImportError as error:
        raise DataError(
            f"{pattern}: needs a package that is not installed ({error.name or error}); for s3:// "
            "pip install 'cpt-toolkit[s3]', for gs:// gcsfs, for az:// adlfs."
        ) from error
    except Exception as error:  # each store has errors of its own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{pattern}: cannot be reached ({first_line}); check the address and your login."
        ) from error
    if not is_there:
        raise DataError(f"{pattern}: no such file.")
    return file_system, file_names


def _remote_files(pattern: str, source: SourceSection, seen: set[str]) -> Iterator[SourceFile]:
    file_system, file_names = _filesystem(pattern)
    literal_root = _literal_root(file_system._strip_protocol(pattern))
    for name in file_names:
        relative_path = PurePosixPath(os.path.relpath(name, literal_root))
        if _is_excluded(relative_path.as_posix(), source):
            continue
        key = (relative_path.parent / _without_endings(relative_path.name)).as_posix()
        key = _unlike(key, relative_path.name, seen)

        # The name is bound as a default: a closure would see the last one of the loop.
        @contextmanager
        def opened(name: str = name) -> Iterator[IO[bytes]]:
            with file_system.open(name, "rb") as raw, _decompressed(name, raw) as stream:
                yield stream

        yield SourceFile(key, name, opened)


def _remote_marks(pattern: str) -> dict[str, str]:
    """Stores give a size and often a version; reading everything to hash it would be too dear."""
    file_system, file_names = _filesystem(pattern)
    marks_by_name = {}
    for name in file_names:
        file_info = file_system.info(name)
        version_keys = ("size", "ETag", "etag", "LastModified", "mtime", "md5Hash", "version_id")
        mark_text = " ".join(f"{key}={file_info[key]}" for key in version_keys if key in file_info)
        marks_by_name[name] = hash_bytes(mark_text.encode())
    return marks_by_name
