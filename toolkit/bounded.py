"""Running what a stranger wrote, such as a chat template, with a bound on time and memory."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.library_errors import is_out_of_memory
from toolkit.limits import limit, raise_hint


class BoundError(ToolkitError):
    """Something took more time or memory than it may."""


class _TimeIsUpError(BaseException):
    """Raised by the timer: no handler of a template's own errors may catch it."""


@contextlib.contextmanager
def bounded_template(what: str = "the chat template") -> Iterator[None]:
    """Render a chat template within the limits of `limits`.

    Raises:
        BoundError: it takes longer, or more memory.
    """
    with bounded(what, "TEMPLATE_SECONDS", "TEMPLATE_BYTES"):
        yield


@contextlib.contextmanager
def bounded(what: str, seconds: str, size: str) -> Iterator[None]:
    """Run a block that takes no more time and memory than two limits say.

    Time is bounded in the main thread, where the system's timer can interrupt; memory on Linux.

    Args:
        what: is run; begins the message.
        seconds, size: names of the limits.

    Raises:
        BoundError: it takes more.
    """
    try:
        with _timer(limit(seconds)), _memory(limit(size)):
            yield
    except _TimeIsUpError:
        raise BoundError(
            f"{what} runs for more than {limit(seconds)} seconds: {raise_hint(seconds)}."
        ) from None
    except Exception as error:
        # A template's environment may wrap the error; its text stays.
        if is_out_of_memory(error) or isinstance(error, (OverflowError, RecursionError)):
            raise BoundError(
                f"{what} asks for more memory or depth than it may: bytes: {raise_hint(size)}."
            ) from error
        raise


@contextlib.contextmanager
def _timer(seconds: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return
    if signal.getitimer(signal.ITIMER_REAL)[0]:  # somebody else's, such as a test's
        yield
        return

    def stop(_number: int, _frame: Any) -> None:
        raise _TimeIsUpError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _memory(num_bytes: int) -> Iterator[None]:
    """Let the process grow by so much at most; what it has stays."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError, ValueError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + num_bytes
    if any(known != resource.RLIM_INFINITY and known < wanted for known in (soft, hard)):
        yield  # a stricter bound holds already
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
