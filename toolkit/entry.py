"""Where the command begins, and how it ends: one line for whatever a user can meet."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from toolkit.streams import deaf_streams

INTERRUPTED = 130
_STOPPED = (
    "Stopped; nothing is half-written. The same command continues a stage, or begins a merge anew."
)


def main() -> None:
    """Run the command line; only our own bugs show a traceback, and how to report them."""
    from toolkit import cli  # it takes `errors_in_one_line` from here

    with deaf_streams():
        try:
            cli.main()
        except SystemExit:
            raise
        except BaseException as error:
            traceback.print_exception(error)
            print(_REPORT, file=sys.stderr)
            sys.exit(OWN_FAULT)


def quieten() -> None:
    """Keep libraries from talking, to the user or to anyone."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


TRACEBACK = "TOOLKIT_TRACEBACK"
"""Environment variable: set to 1, every error shows where in the code it was raised."""

OWN_FAULT = 70
"""Exit code of an error of our own (EX_SOFTWARE of sysexits)."""

_REPORT = (
    "error: this is a fault of the toolkit, not of your files or settings. Please report it with "
    "the lines above, the command, and what `toolkit machine` prints. Stages that are complete "
    "stand; the same command continues."
)


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
            from toolkit.library_errors import explain

            known = explain(error)
            if known is None:
                raise
            if os.environ.get(TRACEBACK, "") not in {"", "0"}:
                traceback.print_exception(error)
            stop(str(known), known.exit_code)


def stop(message: str, code: int) -> NoReturn:
    """Print a message and end the process."""
    print(message if code == INTERRUPTED else f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
