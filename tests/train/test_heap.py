"""Memory that training frees stays at hand, and is given back afterwards."""

from __future__ import annotations

import platform
import resource

import psutil
import pytest
import torch

from toolkit.train.heap import keep_freed_memory

BYTES = 96 << 20
PAGES = BYTES // resource.getpagesize()


def faults_of_a_block(size: int = BYTES) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(size // 4).fill_(0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is set")
def test_a_block_is_used_again_and_given_back():
    with keep_freed_memory():
        # glibc asks for some bytes more than an aligned block has, so that an equal one need not
        # fit; and there may be room elsewhere that was given back before.
        faults = [faults_of_a_block(BYTES - 4096 * number) for number in range(6)]
        assert min(faults) < PAGES / 10
        kept = psutil.Process().memory_info().rss
    assert kept - psutil.Process().memory_info().rss > BYTES / 2
    assert min(faults_of_a_block(BYTES - 4096 * number) for number in range(6)) > PAGES / 2


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1"))
    monkeypatch.setattr("ctypes.CDLL", None)
    with keep_freed_memory():
        pass
