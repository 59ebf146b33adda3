"""Temporary files and folders, named after their process, so that a killed one's are told.

`.NAME.PID@HOST.tmp` stands beside what it will become. Where the process lives no more, whoever
comes next on that host removes it: nothing is left in a finished folder, and no gigabytes in one
that nobody looks at.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"\..+\.(\d+)(?:@([\w-]+))?\.tmp")


def temporary_path(path: Path) -> Path:
    """Where this process writes what will stand at a path."""
    # In the same folder, as a rename is one step within a file system only.
    return path.with_name(f".{path.name}.{os.getpid()}@{_host()}.tmp")


def _host() -> str:
    # Cut, as a name in a folder has 255 bytes at most.
    return re.sub(r"\W", "-", socket.gethostname(), flags=re.ASCII)[:40] or "host"


@contextlib.contextmanager
def appearing_file(path: Path) -> Iterator[Path]:
    """Where to write a file that stands at `path` whole when the block ends, or not at all."""
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, below: bool = True, of_all_hosts: bool = False) -> None:
    """Remove temporary files and folders of processes that live no more.

    Args:
        folder: to look in.
        below: whether to look in the folders in it too.
        of_all_hosts: whether those of other hosts go too, of whose processes nothing is known here:
            only where a lock keeps all others from writing in the folder.
    """
    # A list first: the walk must not come into folders that are being removed.
    for path in list(folder.rglob(".*.tmp") if below else folder.glob(".*.tmp")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        is_of_this_host = match[2] in {None, _host()}
        if _lives(int(match[1])) if is_of_this_host else not of_all_hosts:
            continue
        with contextlib.suppress(OSError):
            remove_path(path)


def remove_path(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, whose target stays."""
    # `rmtree` refuses a link, and its target is somebody else's.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder beside a path for what is only needed meanwhile: on the same disk, which has room
    for the result, and not in the system's temporary folder, which may be memory."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(beside.parent, below=False)
    folder = temporary_path(beside)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lives(number: int) -> bool:
    if number == os.getpid():
        return True
    try:
        # Signal 0 is never sent; the system only looks whether there is such a process.
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # The process is another user's; or the number is none of this system's, and says nothing.
    except (PermissionError, OverflowError):
        return True
    return True
