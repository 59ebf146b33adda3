"""What every kernel is made of: bfloat16 in and out, fused multiply-add, tiles that fit a cache.

Kernels see *rows*: a tuple of arrays `[n]`, one a tuned model and the base last, all uint16 (the
bits of bfloat16) or all float32. Loops are plain ones over all rows at once (see `entries`), or
over float32 copies of a tile, so that LLVM turns them into vector instructions. No fast-math:
results do not depend on how entries are grouped, nor on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from toolkit.merge.kernels.cache import kernel_folder
from toolkit.merge.kernels.sizes import TILE

_DECORATING = threading.Lock()


def kernel(function: Callable[..., Any]) -> Any:
    """Mark a function for numba; division by zero gives infinity, as everywhere in numpy."""
    # Without the GIL, as the threads of a merge run kernels side by side.
    return numba.njit(nogil=True, error_model="numpy")(function)


def cached_kernel(function: Callable[..., Any]) -> Any:
    """Mark a kernel that is called from Python, and with all it calls kept for the next process."""
    folder = kernel_folder()
    if folder is None:
        return kernel(function)
    with _DECORATING:  # threads of a merge import kernels side by side
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)  # read while the function is decorated
        try:
            return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
        finally:
            numba.config.CACHE_DIR = before


@kernel
def tile(dtype: Any) -> Any:
    """Room for a tile of entries: `[TILE]`."""
    return np.empty(TILE, dtype)


@kernel
def tiles(count: int, dtype: Any) -> Any:
    """Room for several: `[count, TILE]`."""
    return np.empty((count, TILE), dtype)


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001
    """`a * b + c` rounded once, as torch's `add_(b, alpha=a)` does."""
    signature = types.float32(types.float32, types.float32, types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.fma(*arguments)

    return signature, generate


def decode(source: Any, target: Any) -> Any:
    """Stored entries to float32, given as its bits; returns the largest magnitude's bits.

    Numba computes with 64 bits what is not cast back, which would halve the speed.
    """
    raise NotImplementedError


@overload(decode)  # type: ignore[untyped-decorator]
def _decode(source: Any, target: Any) -> Any:  # noqa: ARG001
    if source.dtype == types.uint16:

        def from_bf16(source: Any, target: Any) -> Any:
            top = np.uint32(0)
            for i in range(source.size):
                bits = np.uint32(np.uint32(source[i]) << np.uint32(16))
                target[i] = bits
                top = np.uint32(max(top, bits & np.uint32(0x7FFFFFFF)))
            return top

        return from_bf16

    def from_f32(source: Any, target: Any) -> Any:
        bits = source.view(np.uint32)
        top = np.uint32(0)
        for i in range(bits.size):
            target[i] = bits[i]
            top = np.uint32(max(top, bits[i] & np.uint32(0x7FFFFFFF)))
        return top

    return from_f32
