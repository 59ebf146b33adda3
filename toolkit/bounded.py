"""Running what a stranger wrote, such as a chat template, with a bound on time and memory."""

from __future__ import annotations

import contextlib
import ctypes
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

    Time is bounded in any thread, between two steps of Python; memory on Linux.

    Args:
        what: is run; begins the message.
        seconds, size: names of the limits.

    Raises:
        BoundError: it takes more.
    """
    try:
        with _timer(limit(seconds)), _memory.hold(limit(size)):
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
    # Python runs signal handlers in the main thread and lets no other one set them; Windows has no
    # setitimer at all.
    in_main = threading.current_thread() is threading.main_thread()
    # A timer that runs is somebody else's, such as a test's.
    if in_main and hasattr(signal, "setitimer") and not signal.getitimer(signal.ITIMER_REAL)[0]:
        with _signal_timer(seconds):
            yield
    else:
        with _thread_timer(seconds):
            yield


@contextlib.contextmanager
def _signal_timer(seconds: int) -> Iterator[None]:
    def stop(_number: int, _frame: Any) -> None:
        raise _TimeIsUpError

    former_handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # The clock stops before the handler goes: an alarm without a handler ends the process.
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, former_handler)


@contextlib.contextmanager
def _thread_timer(seconds: int) -> Iterator[None]:
    """The same in any thread: another one raises the error in it, between two of its steps."""
    # The C function takes an unsigned long; ctypes would pass a bare integer as an int, and cut it.
    thread_id = ctypes.c_ulong(threading.get_ident())
    raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
    guard, over = threading.Lock(), threading.Event()

    def stop() -> None:
        # Not after the block has ended: the error would then hit whatever runs next in this thread.
        with guard:
            if not over.is_set():
                raise_in_thread(thread_id, ctypes.py_object(_TimeIsUpError))

    timer = threading.Timer(seconds, stop)
    # A command that is done must not wait for the clock to run out.
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with guard:
            over.set()
            raise_in_thread(thread_id, None)  # raised just now, and not felt yet
        timer.cancel()


class _MemoryBound:
    """Lets the process grow by so much at most; what it has stays.

    The system knows one bound for all threads, so the first that asks sets it, and the last that
    ends lifts it.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holders = 0
        self._before: tuple[int, int] | None = None

    @contextlib.contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        with self._guard:
            self._holders += 1
            if self._holders == 1:
                self._before = _set_memory(num_bytes)
        try:
            yield
        finally:
            with self._guard:
                self._holders -= 1
                if self._holders == 0 and self._before is not None:
                    import resource

                    resource.setrlimit(resource.RLIMIT_AS, self._before)
                    self._before = None


_memory = _MemoryBound()


def _set_memory(num_bytes: int) -> tuple[int, int] | None:
    """Bound the process; the bound that it had, or None where a stricter one stays."""
    try:
        import resource

        # The system bounds address space, not memory in use, and libraries reserve far more of that
        # than they touch: so the bound is counted from what is mapped already.
        pages_used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError, ValueError):
        return None
    soft_limit, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages_used * resource.getpagesize() + num_bytes
    # A stricter bound is somebody's wish and stays. The hard limit is never changed: without
    # special rights it cannot be raised again.
    if any(known != resource.RLIM_INFINITY and known < wanted for known in (soft_limit, hard)):
        return None
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    return soft_limit, hard
