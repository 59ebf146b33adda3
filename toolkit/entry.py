"""Where the command begins: `toolkit merge run CONFIG OUT` by a short way, all else by `cli`.

A small merge takes less time than reading the definitions of all commands, so this one form of it
goes straight to the merge. Every other form, flags among them, goes through the command line.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from toolkit.errors import ToolkitError

INTERRUPTED = 130
_STOPPED = (
    "Stopped; nothing is half-written. The same command continues a stage, or begins a merge anew."
)


def main() -> None:
    """Run the command line; only our own bugs show a traceback."""
    quieten()
    if (paths := _paths_of_a_plain_merge(sys.argv[1:])) is None:
        from toolkit import cli

        cli.main()
        return
    with errors_in_one_line():
        _merge(*paths)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is open any more; taking the interpreter apart would cost 0.03 s


def quieten() -> None:
    """Keep libraries from talking, to the user or to anyone."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _paths_of_a_plain_merge(words: Sequence[str]) -> tuple[str, str] | None:
    if len(words) != 4 or words[:2] != ["merge", "run"]:
        return None
    if any(word.startswith("-") for word in words[2:]):
        return None
    return words[2], words[3]


def _merge(config: str, out: str) -> None:
    gc.disable()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads nobody needs
    from pathlib import Path

    from toolkit.merge.run import run_merge
    from toolkit.merge.simple import simple_config
    from toolkit.plain import load_yaml

    data = load_yaml(Path(config))
    found = simple_config(data)
    if found is None:
        from toolkit.merge.config import parse_merge_config

        found = parse_merge_config(data, where=config)
    gc.freeze()  # what imports made stays, and the collector need not go through it
    gc.enable()
    plan = run_merge(found, Path(out))
    print(f"{plan.method.name}: {len(plan.tasks)} tensors written to {out}")


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
