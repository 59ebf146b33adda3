"""What files hold, by sha256, without reading large ones that were read before.

A large file's hash is remembered with its path, size, number and time of change; where all four are
the same it is believed. Small files are always read, and so are all under `--verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from toolkit.leftovers import appearing_file
from toolkit.machine import cache_folder

ALWAYS_READ_BYTES = 16 << 20
"""Files up to this size are read each time: a hundredth of a second."""

_READ_TOGETHER_BYTES = 128 << 20
"""So much of a folder is read each time it is asked for: a tenth of a second or so."""

_SEEN: set[tuple[str, str, tuple[tuple[str, str], ...]]] = set()
"""Folders that this process found good, as they were then."""

_MOST_REMEMBERED = 4096
_SETTLED_SECONDS = 2.0
"""A file changed so shortly ago may change again within one tick of its clock."""

_VERIFY = "TOOLKIT_VERIFY"


def verify_all(wanted: bool) -> None:
    """Read every file from here on, in the processes that this one starts as well, if `wanted`."""
    if wanted:
        os.environ[_VERIFY] = "1"


def read_hash(path: Path) -> str:
    """sha256 of all of a file, read now."""
    with path.open("rb") as file:
        return hash_open(file)


def hash_open(file: IO[bytes]) -> str:
    """sha256 of all that an open file still gives."""
    digest = hashlib.sha256()
    # In blocks, as a file of weights may be larger than the memory.
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def known_hash(path: Path) -> str:
    """sha256 of all of a file; a large one's is remembered until something tells of a change."""
    if path.stat().st_size <= ALWAYS_READ_BYTES:
        return read_hash(path)
    key, mark = str(path.resolve()), _mark(path)
    entry = _remembered().get(key)
    if entry is not None and entry[:-1] == mark and not os.environ.get(_VERIFY):
        return str(entry[-1])
    digest = read_hash(path)
    # Looked at again after reading: what changed meanwhile would be remembered with a hash of half
    # the old bytes and half the new.
    if _mark(path) == mark and time.time() - path.stat().st_mtime > _SETTLED_SECONDS:
        _remember(key, [*mark, digest])
    return digest


def differing_files(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Files below a folder that do not hold the expected bytes, or are missing.

    The smallest are always read, up to `_READ_TOGETHER_BYTES` in all. The others are read when one
    of them has another size, number or time of change than when they were last found good.

    Args:
        folder: that they stand in.
        expected: sha256 by relative path.
    """
    paths_there = {name: folder / name for name in expected if (folder / name).is_file()}
    # Taken before anything is read, so that a change meanwhile shows as one at the next call.
    marks = {name: _mark(path) for name, path in paths_there.items()}
    whole = (str(folder.resolve()), json.dumps(sorted(marks.items())), tuple(expected.items()))
    missing = [name for name in expected if name not in paths_there]
    if whole in _SEEN and not missing:
        return []
    bytes_so_far, small_names, large_names = 0, list[str](), list[str]()
    # Smallest first: so many files as can be are read within the budget.
    for name in sorted(paths_there, key=lambda name: marks[name][0]):
        bytes_so_far += marks[name][0]
        (small_names if bytes_so_far <= _READ_TOGETHER_BYTES else large_names).append(name)
    differing = [name for name in small_names if read_hash(paths_there[name]) != expected[name]]
    # All large files share one entry. It has four values like that of a single file, and its key
    # ends in a separator, which no file's path does.
    told = [[name, *marks[name], expected[name]] for name in sorted(large_names)]
    entry = [hashlib.sha256(json.dumps(told).encode()).hexdigest(), len(large_names), 0, "good"]
    key = f"{whole[0]}{os.sep}"
    if large_names and (_remembered().get(key) != entry or os.environ.get(_VERIFY)):
        found = [name for name in large_names if read_hash(paths_there[name]) != expected[name]]
        latest_change = max(paths_there[name].stat().st_mtime for name in large_names)
        if not found and time.time() - latest_change > _SETTLED_SECONDS:
            _remember(key, entry)
        differing += found
    if not differing and not missing:
        _SEEN.add(whole)
    return [*missing, *differing]


def _mark(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _file() -> Path:
    return cache_folder() / "hashes.json"


def _remembered() -> dict[str, list[Any]]:
    try:
        entries_by_key = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # nothing yet, or damaged: files are read again
    well_formed = isinstance(entries_by_key, dict) and all(
        isinstance(entry, list) and len(entry) == 4 for entry in entries_by_key.values()
    )
    return entries_by_key if well_formed else {}


def _remember(key: str, entry: list[Any]) -> None:
    entries_by_key = _remembered()
    # Out and in again: the newest stand last, and the oldest fall off the front. Of two processes
    # that write at once one may lose an entry, and its file is read again.
    entries_by_key.pop(key, None)
    entries = [*entries_by_key.items(), (key, entry)][-_MOST_REMEMBERED:]
    with contextlib.suppress(OSError):  # it only saves time
        _file().parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(_file()) as temporary:
            temporary.write_text(json.dumps(dict(entries)), encoding="utf-8")
