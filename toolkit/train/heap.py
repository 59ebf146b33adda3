"""How the C library's allocator gives memory to training."""

from __future__ import annotations

import ctypes
import platform

MMAP_THRESHOLD_BYTES = 8 << 20
"""Activations of some megabytes that come and go leave gaps in a common heap, which nothing larger
fits into. Blocks of this size and more are mapped one by one and given back at once: SmolLM2,
4 x 512 in float32, peaks lower at the same speed (LOG.md). glibc by itself raises its threshold to
32 MB with the first such block."""

_M_MMAP_THRESHOLD = -3


def limit_heap_gaps() -> None:
    """Map large blocks one by one, where the C library is glibc; elsewhere nothing is changed."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
