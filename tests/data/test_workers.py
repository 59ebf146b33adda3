"""Processes: the same results in the same order, and a word when one is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from toolkit.data.workers import WorkerProcesses, num_workers
from toolkit.errors import DataError


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcesses]:
    monkeypatch.setenv("TOOLKIT_WORKERS", "2")
    with WorkerProcesses() as workers:
        yield workers


def test_results_come_in_the_order_of_the_tasks(two: WorkerProcesses):
    two.start()
    two.prepare(len, "loaded")
    assert list(two.map(abs, range(-9, 0))) == list(range(9, 0, -1))


def test_a_failure_while_preparing_is_left_to_the_task_that_meets_it(two: WorkerProcesses):
    two.start()
    two.prepare(int, "no number")
    assert list(two.map(int, ["1", "2", "3"])) == [1, 2, 3]
    with pytest.raises(ValueError, match="no number"):
        list(two.map(int, ["1", "no number"]))


def test_a_killed_process_is_told_of(two: WorkerProcesses):
    with pytest.raises(DataError, match=r"a worker process was killed, .* TOOLKIT_WORKERS"):
        list(two.map(os._exit, [1, 1, 1]))
    two.prepare(len, "")  # what is broken stays so, and this is not the place to say it
    with pytest.raises(DataError, match="a worker process was killed"):
        list(two.map(abs, [1, 2]))


def test_one_task_or_one_process_needs_no_pool(monkeypatch: pytest.MonkeyPatch):
    with WorkerProcesses() as workers:
        assert list(workers.map(lambda number: number + 1, [1])) == [2]  # cannot be sent elsewhere
    monkeypatch.setenv("TOOLKIT_WORKERS", "1")
    assert num_workers() == 1
    with WorkerProcesses() as workers:
        workers.start()
        assert list(workers.map(lambda number: number + 1, [1, 2])) == [2, 3]
