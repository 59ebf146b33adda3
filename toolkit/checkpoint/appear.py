"""Output folders that are complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import MergeError


def is_taken(out: Path) -> bool:
    """Whether something is there that would be written over."""
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def refuse_taken(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        MergeError: `out` is a file, or a folder that is not empty.
    """
    if is_taken(out):
        raise MergeError(f"{out}: exists and is not empty; give another folder or remove it.")


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A working folder beside `out` that takes its place when the block ends, or vanishes.

    Raises:
        MergeError: another process is making the same folder, or none can be made there.
    """
    work = out.with_name(f".{out.name}.partial")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise MergeError(
            f"{out}: cannot be made ({error.strerror}); give a folder that can be written to."
        ) from error
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MergeError(
                f"{out}: another process is merging into it; wait for it or stop it."
            ) from error
        for left in work.iterdir():  # by an earlier call that was killed
            left.unlink() if left.is_file() else shutil.rmtree(left)
        try:
            yield work
            work.rename(out)  # an empty folder gives way
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)
