"""Threads of a merge: results in order, and nothing left running after a failure."""

from __future__ import annotations

import threading

import pytest

from toolkit.merge.kernels.workers import BLOCK, WorkerThreads


def test_blocks_cover_a_tensor_in_order():
    workers = WorkerThreads(2)
    blocks = workers.each(2 * BLOCK + 3, lambda start, stop: (start, stop))
    assert blocks == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, 2 * BLOCK + 3)]


def test_blocks_begin_at_multiples_of_a_unit():
    unit = 3 << 18  # larger than half a block
    assert WorkerThreads(2).each(2 * unit, lambda start, _: start, unit) == [0, unit]


def test_large_tensors_come_first_and_small_ones_the_largest_first():
    begun: list[int] = []
    WorkerThreads(1).tensors([1, 9 * BLOCK, 3, 2], begun.append)
    assert begun == [1, 2, 3, 0]


def test_after_a_failure_nothing_runs_and_nothing_begins():
    workers, begun, ended, meet = WorkerThreads(2), [], [], threading.Barrier(2)

    def act(index: int) -> None:
        begun.append(index)
        if index < 2:
            meet.wait(10.0)  # both run side by side
        if index == 1:
            raise ValueError("the second")
        threading.Event().wait(0.2)
        ended.append(index)

    with pytest.raises(ValueError, match="the second"):
        workers.tensors([30, 20, 10, 9, 8, 7], act)
    assert set(begun) - {1} == set(ended)  # what ran was waited for
    assert len(begun) < 6
    known = list(begun)
    threading.Event().wait(0.3)
    assert begun == known


def test_of_two_failures_the_first_in_order_is_met():
    meet = threading.Barrier(2)

    def act(index: int) -> None:
        meet.wait(10.0)
        if index == 0:
            threading.Event().wait(0.1)
        raise ValueError(f"tensor {index}")

    with pytest.raises(ValueError, match="tensor 0"):
        WorkerThreads(2).tensors([2, 1], act)
