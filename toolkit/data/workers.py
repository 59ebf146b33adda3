"""Processes that work through a stream of tasks, in order, with few of them in memory."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from toolkit.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def num_workers() -> int:
    """`$TOOLKIT_WORKERS`, else the processors that this process may use."""
    given_number = os.environ.get("TOOLKIT_WORKERS", "")
    if given_number.isdigit() and int(given_number) > 0:
        return int(given_number)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerProcesses:
    """A pool that starts when there is more than one task to do.

    Results do not depend on the number of processes: every task is a pure function that writes
    files of its own.
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self) -> None:
        """Start the processes now, where a lot of work is known to come: they load their modules
        while this one does something else."""
        if num_workers() > 1:
            self._started()
            self.prepare(os.getpid)

    def prepare(self, act: Callable[..., object], *arguments: object) -> None:
        """Let processes that are there do something that later tasks will need, such as loading;
        what comes of it is not looked at."""
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool):  # the next `map` says so
                for _ in range(num_workers()):
                    self._pool.submit(act, *arguments)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Forking a process that has threads (tokenizers, torch) can hang; spawning cannot.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(num_workers(), context, initializer=_begin)
        return self._pool

    def map(self, act: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks; at most two tasks a process wait.

        Args:
            act: a function at the top of a module.
            tasks: read lazily.

        Raises:
            DataError: a process was killed.
        """
        task_stream = iter(tasks)
        first_tasks = list(itertools.islice(task_stream, 2))
        if len(first_tasks) < 2 or num_workers() == 1:
            yield from map(act, itertools.chain(first_tasks, task_stream))
            return
        waiting_results: deque[Future[Result]] = deque()
        try:
            started_pool = self._started()
            for task in itertools.chain(first_tasks, task_stream):
                waiting_results.append(started_pool.submit(act, task))
                # The loop's own name would keep a batch of texts in memory while results are waited
                # for.
                del task
                if len(waiting_results) >= 2 * num_workers():
                    yield waiting_results.popleft().result()
            while waiting_results:
                yield waiting_results.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "data: a worker process was killed, most likely for want of memory; set "
                "TOOLKIT_WORKERS to fewer processes and run again: what was done is kept."
            ) from error


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says what happened, once
    # There is a process for each processor already; threads in each would get in the way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
