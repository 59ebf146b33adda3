"""Reading PDF and Office files in a process of its own: strangers' files, libraries in C.

A file that makes its reader crash, hang or take all memory is named like any damaged file, and the
next one is read by a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from toolkit.data.paged import PagedText, read_paged
from toolkit.errors import ConfigError, DataError
from toolkit.library_errors import first_line
from toolkit.limits import limit, raise_hint


class _ReaderProcess:
    """The process that reads, started when the first file comes."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def read(self, data: bytes, name: str, kind: str) -> PagedText:
        """See `read_paged_apart`."""
        if self._pipe is None:
            self._start()
        assert self._pipe is not None  # noqa: S101  (just started; this tells the type checker)
        try:
            self._pipe.send((data, name, kind))
            if not self._pipe.poll(limit("PAGED_SECONDS")):
                self.stop()
                raise DataError(
                    f"{name}: reading it takes more than {limit('PAGED_SECONDS')} seconds: "
                    f"{raise_hint('PAGED_SECONDS')}."
                )
            outcome, value = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.stop()
            raise DataError(
                f"{name}: the library that reads it crashes, or asks for more memory than "
                f"{limit('PAGED_BYTES') >> 20} MiB ({raise_hint('PAGED_BYTES')})."
            ) from error
        if outcome == "absent":
            raise ConfigError(
                f"{name}: reading {kind} files needs a package that is not installed ({value}): "
                "pip install 'cpt-toolkit[documents]'."
            )
        if outcome == "fault":
            raise DataError(value)
        assert isinstance(value, PagedText)  # noqa: S101
        return value

    def _start(self) -> None:
        # Not forked: this process may hold threads of torch and a tokenizer.
        context = multiprocessing.get_context("spawn")
        self._pipe, their_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(their_end, limit("PAGED_BYTES")), daemon=True
        )
        self._process.start()
        # While this process holds it, the pipe would not end with the reader, and `recv` would wait
        # for good.
        their_end.close()

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


_reader = _ReaderProcess()
atexit.register(_reader.stop)


def read_paged_apart(data: bytes, name: str, kind: str) -> PagedText:
    """What `read_paged` returns, from a process with bounds on time and memory.

    Raises:
        DataError: as there, or the file breaks the bounds, or the library.
        ConfigError: the library is not installed.
    """
    return _reader.read(data, name, kind)


def _serve(pipe: Connection, num_bytes: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        # Of the address space, as libraries in C allocate past Python.
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            data, name, kind = pipe.recv()
            try:
                answer: tuple[str, Any] = ("read", read_paged(data, name, kind))
            except DataError as error:
                answer = ("fault", str(error))
            except ImportError as error:
                answer = ("absent", error.name or str(error))
            except MemoryError:
                # There is no memory to say so; that the pipe ends says it.
                return
            except Exception as error:  # what a library raises about a stranger's file
                answer = ("fault", f"{name}: cannot be read ({first_line(error)}).")
            pipe.send(answer)
