"""Where compiled kernels are kept: numba's cache, in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import warn
from toolkit.machine import cache_folder

_LOCK = ".lock"


@functools.cache
def kernel_folder() -> Path | None:
    """The folder of these kernels; None where none can be made, as without a writable home.

    numba compiles anew when the file of a function changed, but does not look at the files of the
    functions that it calls. So the folder is named after the text of all of them: another version
    of the toolkit has another folder.
    """
    text = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*sorted((here / "source").glob("*.py")), here / "sizes.py", here / "stream.py"):
        text.update(path.read_bytes())
    name = Path("kernels") / text.hexdigest()[:16]
    try:
        for find_cache in (cache_folder, _private_cache):
            folder = find_cache() / name
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if fault := _fault_of_folder(folder):
                warn(f"{folder}: {fault}; its kernels are not run, and are kept elsewhere.")
            else:
                return folder if os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return None


def _private_cache() -> Path:
    return Path.home() / ".cache" / "cpt-toolkit"


def _fault_of_folder(folder: Path) -> str:
    """Why a folder's files are not to be run, or nothing: numba unpickles what it finds there."""
    status, user = folder.stat(), os.geteuid()
    if status.st_uid != user:
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        if any(path.lstat().st_uid != user for path in folder.rglob("*")):
            return "holds files of another user"
        folder.chmod(0o700)
    return ""


@contextlib.contextmanager
def locked_cache() -> Iterator[None]:
    """Let one process at a time look for a kernel and compile it.

    numba's index of a kernel has no lock of its own: of two processes that add to it at once, such
    as the workers of a search, one could find the other's machine code under its own types.
    """
    folder = kernel_folder()
    if folder is None:
        yield
        return
    # flock ends with its process, so that one that is killed leaves no lock behind.
    with contextlib.ExitStack() as stack:
        # A file system without locks, as some on networks are, has no less of a compiler.
        with contextlib.suppress(OSError):
            file = stack.enter_context((folder / _LOCK).open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_cache() -> None:
    """Forget all compiled kernels of this version; those that are loaded stay so."""
    folder = kernel_folder()
    for path in folder.iterdir() if folder is not None else ():
        # The lock's file stays, as another process may hold it.
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
