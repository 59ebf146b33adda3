"""Where compiled kernels are kept: numba's cache, in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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
    try:
        folder = cache_folder() / "kernels" / text.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # nobody else may put code there
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder if os.access(folder, os.W_OK) else None


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
    with (folder / _LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_cache() -> None:
    """Forget all compiled kernels of this version; those that are loaded stay so."""
    folder = kernel_folder()
    for path in folder.iterdir() if folder is not None else ():
        # The lock's file stays, as another process may hold it.
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
