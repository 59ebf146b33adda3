"""Threads: large tensors block by block on all of them, small ones tensor by tensor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 19
"""Entries that one thread takes at a time: large against the cost of handing them over, small
enough that all threads' output buffers stay within a few megabytes."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux has it, macOS has not
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerThreads:
    """All cores, for large tensors block by block, for small ones tensor by tensor."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or count_cores()
        self._here = threading.local()

    def each(self, size: int, act: Callable[[int, int], ResultT], unit: int = 1) -> list[ResultT]:
        """`act(start, stop)` for every block of `size` entries, results in their order; blocks
        begin at multiples of `unit`."""
        # A row that is longer than a block is taken whole.
        length = max(1, BLOCK // unit) * unit
        blocks = [(start, min(start + length, size)) for start in range(0, size, length)]
        if len(blocks) == 1 or getattr(self._here, "is_worker", False):
            return [act(*block) for block in blocks]
        return self._run(lambda block: act(*block), blocks)

    def count(
        self,
        size: int,
        num_bins: int,
        add: Callable[[int, int, NDArray[Any]], None],
        kind: type[np.generic] = np.int64,
    ) -> NDArray[Any]:
        """Sum of `add(start, stop, counts)` over all blocks; each thread has counts of its own, and
        as they are whole numbers, it does not matter which thread counts what."""
        held: dict[int, NDArray[Any]] = {}

        def act(start: int, stop: int) -> None:
            # The number of a thread that has ended may come again; its counts are then added to, as
            # well.
            thread = threading.get_ident()
            if thread not in held:
                held[thread] = np.zeros(num_bins, kind)
            add(start, stop, held[thread])

        self.each(size, act)
        first, *others = held.values()
        for counts in others:
            first += counts
        return first

    def tensors(self, sizes: Sequence[int], act: Callable[[int], None]) -> None:
        """`act(index)` for every tensor: large ones one by one, each on all cores, then the others
        side by side, each on one, the largest first."""
        # One core with more than this would still be at work when the others have nothing left.
        share = max(BLOCK, sum(sizes) // (2 * self.num_threads))
        large = [index for index, size in enumerate(sizes) if size > share]
        for index in large:
            act(index)

        def on_one(index: int) -> None:
            self._here.is_worker = True  # so that `each` starts no threads within a thread
            try:
                act(index)
            finally:
                self._here.is_worker = False

        small = sorted(set(range(len(sizes))) - set(large), key=lambda index: -sizes[index])
        self._run(on_one, small)

    def _run(self, act: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
        """Results in order; the calling thread is one of those that work. Should one fail, the rest
        are not begun, and nothing runs any more when the failure is passed on: the first in order,
        of those that were met."""
        # From the end, in turn: `pop` of a list is one step for all threads, and needs no lock.
        waiting = list(enumerate(items))[::-1]
        results: dict[int, ResultT] = {}
        failures: dict[int, BaseException] = {}

        def work() -> None:
            while waiting and not failures:
                try:
                    index, item = waiting.pop()
                except IndexError:  # another thread took the last
                    return
                try:
                    results[index] = act(item)
                except BaseException as error:  # passed on below
                    failures[index] = error

        others = range(min(self.num_threads, len(waiting)) - 1)
        threads = [threading.Thread(target=work, daemon=True) for _ in others]
        for thread in threads:
            thread.start()
        try:
            work()
        finally:  # also when the user interrupts
            # Threads end after the item in hand and are waited for: none may write on while the
            # caller cleans up.
            waiting.clear()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[min(failures)]
        return [results[index] for index in range(len(results))]
