"""Where the command begins, and how it ends: one line for whatever a user can meet."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from toolkit.errors import ToolkitError

INTERRUPTED = 130
_STOPPED = (
    "Stopped; nothing is half-written. The same command continues a stage, or begins a merge anew."
)


def main() -> None:
    """Run the command line; only our own bugs show a traceback."""
    from toolkit import cli  # it takes `errors_in_one_line` from here

    cli.main()


def quieten() -> None:
    """Keep libraries from talking, to the user or to anyone."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with one line for whatever a user can meet, and let our own bugs pass."""
    try:
        yield
    except ToolkitError as error:
        stop(str(error), error.exit_code)
    except KeyboardInterrupt:
        stop(_STOPPED, INTERRUPTED)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        stop(_disk_full(error.filename2 or error.filename), 1)  # a copy names its source first
    except Exception as error:
        # Libraries wrap the system's error in their own; its text is what they have in common.
        if "No space left on device" in str(error) or "os error 28" in str(error):
            stop(_disk_full(None), 1)
        raise


def _disk_full(file: object) -> str:
    where = f"{file}: " if file else ""
    return f"{where}the disk is full. Make room and run the same command again."


def stop(message: str, code: int) -> NoReturn:
    """Print a message and end the process."""
    print(message if code == INTERRUPTED else f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
