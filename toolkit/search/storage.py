"""Where the workers of a study meet: a journal file, or a database by its URL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from toolkit.errors import ConfigError, ToolkitError
from toolkit.json_lines import sealed, unsealed

Place = str | Path
"""A URL, or the path of a journal file."""


class JournalLock(BaseJournalFileLock):  # type: ignore[misc]  # optuna's types are not read
    """The system's own lock on the journal, which a killed process cannot keep.

    Optuna's are files that stay behind and are waited for. A line that a killed process left half
    is cut off before anything is written after it; and a journal that was removed is not begun
    anew, as nothing of the study would be in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        path.touch()
        self._size = 0  # it only grows, but for a line cut short

    def acquire(self) -> bool:
        # Opened first, as a lock is on an open file; only under it is what was opened looked at:
        # another process may be writing it, or may have put a new file in its place.
        file = self._path.open("r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            kept_size = _cut_torn_line(file)
            path_status = self._path.stat()
            if path_status.st_ino != os.fstat(file.fileno()).st_ino or kept_size < self._size:
                raise FileNotFoundError(f"{self._path} was replaced")
            self._size = kept_size
        except BaseException:
            file.close()
            raise
        self._file = file
        return True

    def release(self) -> None:
        # Forgotten before it is closed: then the next thread may have the lock, and set its own.
        file, self._file = self._file, None
        if file is not None:
            file.close()


class DamagedJournalError(ToolkitError):
    """A journal of which a line is not as it was written."""


class SummedJournal(JournalFileBackend):  # type: ignore[misc]  # optuna's types are not read
    """A journal each of whose lines holds its own sum, compared when it is read again."""

    def append_logs(self, logs: list[dict[str, object]]) -> None:
        super().append_logs([sealed(log) for log in logs])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, object]]:
        """
        Raises:
            DamagedJournalError: a line does not fit its sum.
        """
        line_number = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                line_number += 1
                if (row := unsealed(log)) is None:
                    raise ValueError("it does not fit its sum")
                yield row
        except (ValueError, RecursionError) as error:
            raise DamagedJournalError(
                f"{self._file_path}:{line_number}: is not as it was written ({error}); move the "
                "file away and run the same command: scores are kept beside the runs as well."
            ) from error


def _cut_torn_line(file: IO[bytes]) -> int:
    """Cut off what follows the last line break; returns the size that is left."""
    old_size = kept_end = file.seek(0, os.SEEK_END)
    while kept_end:
        start = max(0, kept_end - (1 << 16))
        file.seek(start)
        line_break = file.read(kept_end - start).rfind(b"\n")
        if line_break >= 0:
            kept_end = start + line_break + 1
            break
        kept_end = start
    if kept_end < old_size:
        file.truncate(kept_end)
    return kept_end


def open_storage(place: Place, *, begin: bool) -> Any:
    """The storage at a place; a journal is only made where a study is to begin.

    Raises:
        ConfigError: the URL is of no known kind, or its driver is not installed.
        ToolkitError: it cannot be reached.
    """
    if isinstance(place, Path):
        if not begin and not place.is_file():
            raise ToolkitError(
                f"{place}: there is no study; `toolkit merge choose` begins one, and workers join "
                "it while that runs."
            )
        with storage_errors(place, "cannot be opened"):
            lock = JournalLock(place)
            # Once before anything is read: a line that a killed process left half is cut off by it.
            lock.acquire()
            lock.release()
            return optuna.storages.JournalStorage(SummedJournal(str(place), lock_obj=lock))
    # psycopg 3 by name: without one SQLAlchemy looks for psycopg2, which the extra
    # does not install.
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", place)
    # A database that was restarted leaves dead connections behind: each is tried before use.
    options: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        options["connect_args"] = {"connect_timeout": 10}
    try:
        with storage_errors(place, "cannot be opened"):
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise ConfigError(
            f"search.storage: {spoken(place)}: its driver is not installed ({error}); "
            "pip install 'cpt-toolkit[postgresql]'."
        ) from error
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy") or isinstance(error, ValueError):
            raise ConfigError(
                f"search.storage: {spoken(place)} is no storage that Optuna knows "
                f"({_first_line(error)}). Give postgresql://user@host/database."
            ) from error
        raise


def spoken(place: Place) -> str:
    """A place, or a text with one in it, without its password and all that may hold another: what
    follows a URL's question mark.

    >>> spoken("postgresql://me:secret@host/db")
    'postgresql://me@host/db'
    >>> spoken("postgresql://host/db?user=me&password=secret")
    'postgresql://host/db'
    """
    # Up to the last @, as a password that should have been written %40 holds one.
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1@", str(place))
    return re.sub(r"(://[^?\s]*)\?[^\s'\")]*", r"\1", text)


@contextlib.contextmanager
def storage_errors(place: Place, what: str = "went away in mid-study") -> Iterator[None]:
    """Say plainly that a storage cannot be reached.

    Raises:
        ToolkitError: in place of the libraries' own errors.
    """
    try:
        yield
    except Exception as error:
        if not is_lost(error):
            raise
        raise ToolkitError(
            f"{spoken(place)}: the storage of the study {what} ({_first_line(error)}). What it "
            "holds is kept; bring it back and run the same command: it continues."
        ) from error


def is_lost(error: BaseException) -> bool:
    """Whether an error means that the storage cannot be reached, however it is wrapped."""
    from sqlalchemy import exc

    cause_seen: BaseException | None = error
    while cause_seen is not None:
        if isinstance(cause_seen, (exc.OperationalError, exc.InterfaceError, OSError)):
            return True
        if isinstance(cause_seen, exc.DBAPIError) and cause_seen.connection_invalidated:
            return True
        # Optuna wraps what SQLAlchemy raised, which wraps the driver's own error.
        cause_seen = cause_seen.__cause__ or cause_seen.__context__
    return False


def _first_line(error: BaseException) -> str:
    root_cause = error
    while root_cause.__cause__ is not None:
        root_cause = root_cause.__cause__
    text = str(root_cause).strip() or str(error).strip() or type(error).__name__
    return spoken(text.splitlines()[0])
