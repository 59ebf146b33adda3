"""How a command of this process ends: one line for whatever a user can meet."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from toolkit.cli.streams import deaf_streams

INTERRUPTED = 130
_STOPPED = (
    "Stopped; nothing is half-written. The same command continues a stage, or begins a merge anew."
)


def quieten() -> None:
    """Keep libraries from talking, to the user or to anyone."""
    # Defaults only: what the user has set stays.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


TRACEBACK = "TOOLKIT_TRACEBACK"
"""Environment variable: set to 1, every error shows where in the code it was raised."""


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with one line for whatever a user can meet, and let our own bugs pass."""
    with deaf_streams():
        try:
            yield
        except KeyboardInterrupt:
            stop(_STOPPED, INTERRUPTED)
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # Imported where something failed, as most commands end well.
            from toolkit.library_errors import explain

            known_error = explain(error)
            if known_error is None:
                raise
            if os.environ.get(TRACEBACK, "") not in {"", "0"}:
                traceback.print_exception(error)
            stop(str(known_error), known_error.exit_code)


def stop(message: str, code: int) -> NoReturn:
    """Print a message and end the process."""
    print(message if code == INTERRUPTED else f"error: {message}", file=sys.stderr)
    sys.exit(code)
