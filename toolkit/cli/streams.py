"""Standard output and error that may be closed, or cut off by the reader of a pipe.

A merge of hours is not lost because nobody listens any more, or because the disk with the log is
full: what would be said is dropped, and the work goes on. Names of files that are not UTF-8 are
printed with their bytes escaped.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class DeafStream:
    """A text stream that drops what it is given once nobody reads it any more.

    Attributes:
        lost: why what was said did not arrive, where it should have: a full disk. That the reader
            of a pipe has gone is no fault.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        # It is a ValueError, so it is caught before the one below.
        except UnicodeEncodeError as error:
            escaped_text = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            return int(self._stream.write(escaped_text))
        except OSError as error:
            self._give_up(error)
        except ValueError:  # it was closed
            pass
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)
        except ValueError:
            pass

    def _give_up(self, cause: OSError) -> None:
        """Let what is still buffered, and all that follows, run into nothing."""
        if not isinstance(cause, BrokenPipeError):
            self.lost = cause
        with contextlib.suppress(OSError, ValueError):
            # Below Python's stream: its own flush at exit would meet the broken pipe again.
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, self._stream.fileno())
            os.close(null_device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def deaf_streams() -> Iterator[None]:
    """Let the block print whether or not somebody reads."""
    _open_standard_files()
    output, errors = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = DeafStream(output), DeafStream(errors)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = output, errors


def refuse_lost_output() -> None:
    """End the process with an error where its standard output could not be written.

    Raises:
        SystemExit: it could not.
    """
    sys.stdout.flush()
    if (cause := getattr(sys.stdout, "lost", None)) is not None:
        print(
            f"error: standard output could not be written ({cause.strerror}); what was said from "
            "there on is lost. What the command made stands.",
            file=sys.stderr,
        )
        sys.exit(LOST_OUTPUT)


LOST_OUTPUT = 74
"""Exit code where all went well but for what was said (EX_IOERR of sysexits)."""


def _open_standard_files() -> None:
    """Put nothing in the place of closed ones: the next file opened would have their number, and
    what libraries print would go into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The system gives the lowest free number, which is mostly the one that is missing.
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
