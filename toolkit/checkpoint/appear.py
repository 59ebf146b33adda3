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

_LAST = "config.json"
"""Without it no reader takes a folder for a model, so it is moved last."""


def is_taken(out: Path) -> bool:
    """Whether something is there that would be written over."""
    if not out.exists():
        return False
    inner = _inside(out).name
    return not out.is_dir() or any(path.name != inner for path in out.iterdir())


def refuse_taken(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        MergeError: `out` is a file, a link to nothing, or a folder that is not empty.
    """
    if out.is_symlink() and not out.exists():
        raise MergeError(f"{out}: is a link to nothing; make the folder it points to.")
    if is_taken(out):
        raise MergeError(f"{out}: exists and is not empty; give another folder or remove it.")


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A working folder beside `out` that takes its place when the block ends, or vanishes.

    Where `out` is an empty folder that cannot be replaced (the current folder, a mounted volume, or
    one whose parent may not be written to), the working folder is made in it, and its files are
    moved up at the end, config.json last. A link is followed.

    Raises:
        MergeError: another process is making the same folder, or none can be made there.
    """
    place = out.resolve()
    work = _inside(place) if _must_stay(place) else place.with_name(f".{place.name}.partial")
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
            if work.parent == place:
                _move_up(work)
            else:
                work.rename(place)  # an empty folder gives way
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _inside(place: Path) -> Path:
    return place / ".partial"


def _must_stay(place: Path) -> bool:
    """Whether an existing folder is one that no other can be put in the place of."""
    if not place.is_dir():
        return False
    is_current = place.samefile(Path.cwd())
    return is_current or os.path.ismount(place) or not os.access(place.parent, os.W_OK)


def _move_up(work: Path) -> None:
    moved: list[Path] = []
    try:
        for path in sorted(work.iterdir(), key=lambda path: path.name == _LAST):
            target = work.parent / path.name
            if target.exists():
                raise MergeError(f"{target}: was made meanwhile by somebody else; run again.")
            path.rename(target)
            moved.append(target)
        work.rmdir()
    except BaseException:
        for target in moved:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        raise
