"""How the C library gives memory to training."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's `mallopt`."""

_OWN_MAP_BYTES = 1 << 20
"""Size from which on a block goes back to the system as soon as it is freed."""

_DEFAULT_TRIM_BYTES, _DEFAULT_MMAP_MAX = 1 << 17, 1 << 16


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep what is freed for what comes next, where the C library is glibc.

    A step needs the memory that the last one freed. By default glibc gives large blocks back to the
    system, which hands them out again page by page, each cleared first: 100,000 page faults a step
    of SmolLM2 (dev/LOG.md). Afterwards all is given back.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    # Set by number: mallopt has no names outside of C, and no way to ask for what was set before.
    library = ctypes.CDLL(None)
    # No block as a mapping of its own, which is unmapped when it is freed, and no top of the heap
    # that is trimmed: what is freed stays with the process.
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        library.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM_BYTES)
        library.malloc_trim(0)


def give_back_freed_memory() -> None:
    """Give every large block back when it is freed, for the rest of the process (with glibc).

    Where processes share out a model, gathered layers come and go in each: kept for what comes
    next, they would add up to a multiple of what the process has.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _OWN_MAP_BYTES)


def place_moments(optimizer: torch.optim.AdamW) -> None:
    """Make what AdamW keeps of each parameter before the first step: made in that step, it would
    stand between activations for good, and larger ones would not fit where they were."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
