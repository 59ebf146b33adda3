"""Memory that training frees stays at hand, and is given back afterwards."""

from __future__ import annotations

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from toolkit.train.heap import keep_freed_memory

MEASURE = """
import resource

import psutil
import torch

from toolkit.train.heap import keep_freed_memory

BYTES = 96 << 20
PAGES = BYTES // resource.getpagesize()


def fewest_faults_of_a_block():
    # glibc asks for some bytes more than an aligned block has, so that an equal one need not fit;
    # and there may be room elsewhere that was given back before.
    faults = []
    for number in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty((BYTES - 4096 * number) // 4).fill_(0)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)


with keep_freed_memory():
    within = fewest_faults_of_a_block()
    kept = psutil.Process().memory_info().rss
given_back = kept - psutil.Process().memory_info().rss
print(within / PAGES, given_back / BYTES, fewest_faults_of_a_block() / PAGES)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is set")
def test_a_block_is_used_again_and_given_back():
    # In a process of its own: once any allocation has failed, as in tests of damaged inputs, glibc
    # serves the thread from another arena, in which large blocks are always mapped.
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120
    )
    within, given_back, afterwards = (float(word) for word in measured.stdout.split())
    assert within < 0.1
    assert given_back > 0.5
    assert afterwards > 0.5


def test_afterwards_the_c_library_has_its_own_settings(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *given: calls.append(given), malloc_trim=lambda _: 0)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    with keep_freed_memory():
        calls.clear()
    # mallopt(3): M_MMAP_MAX 65,536 and M_TRIM_THRESHOLD 128 KiB.
    assert calls == [(-4, 65536), (-1, 128 * 1024)]


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1"))
    monkeypatch.setattr("ctypes.CDLL", None)
    with keep_freed_memory():
        pass
