"""What every kernel is made of: bfloat16 in and out, fused multiply-add, tiles that fit a cache.

Kernels see *rows*: a tuple of arrays `[n]`, one a tuned model and the base last, all uint16 (the
bits of bfloat16) or all float32. They work tile by tile on float32 copies, so that every loop is a
plain one that LLVM turns into vector instructions. No fast-math: results do not depend on how
entries are grouped, nor on the number of threads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _set_cache_folder() -> bool:
    """Compiled kernels go where the user may write, wherever the package is installed.

    Numba looks only at the file a kernel stands in, not at those it calls into, so the folder is
    named after the sources of all of them. False where there is no such place.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return True
    sources = sorted(Path(__file__).parent.glob("*.py"))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(base) / "cpt-toolkit" / "kernels" / version
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that is read-only
        return False
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return os.access(folder, os.W_OK)


_MAY_CACHE = _set_cache_folder()

import numba  # noqa: E402  (it reads the variable when it is imported)
from numba import types  # noqa: E402
from numba.extending import intrinsic, overload  # noqa: E402

TILE = 2048
"""Entries of a tile: with a few models and scratch rows it stays within the first-level cache."""

NON_FINITE = 0x7F800000
"""Bits of float32 infinity; magnitudes from here on are infinite or NaN."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function: without the interpreter lock, cached on disk where that is possible."""
    return numba.njit(nogil=True, cache=_MAY_CACHE, error_model="numpy")(function)


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001
    """`a * b + c` rounded once, as torch's `add_(b, alpha=a)` does."""
    signature = types.float32(types.float32, types.float32, types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.fma(*arguments)

    return signature, generate


def decode(source: Any, target: Any) -> Any:
    """Stored entries to float32, given as its bits; returns the largest magnitude's bits."""
    raise NotImplementedError


@overload(decode)  # type: ignore[untyped-decorator]
def _decode(source: Any, target: Any) -> Any:  # noqa: ARG001
    if source.dtype == types.uint16:

        def from_bf16(source: Any, target: Any) -> Any:
            top = np.uint32(0)
            for i in range(source.size):
                bits = np.uint32(source[i]) << np.uint32(16)
                target[i] = bits
                top = max(top, bits & np.uint32(0x7FFFFFFF))
            return top

        return from_bf16

    def from_f32(source: Any, target: Any) -> Any:
        bits = source.view(np.uint32)
        top = np.uint32(0)
        for i in range(bits.size):
            target[i] = bits[i]
            top = max(top, bits[i] & np.uint32(0x7FFFFFFF))
        return top

    return from_f32


def encode(bits: Any, target: Any) -> None:
    """float32, given as its bits, to stored entries: one cast, to the nearest, ties to even."""
    raise NotImplementedError


@overload(encode)  # type: ignore[untyped-decorator]
def _encode(bits: Any, target: Any) -> Any:  # noqa: ARG001
    if target.dtype == types.uint16:

        def to_bf16(bits: Any, target: Any) -> None:
            for i in range(target.size):
                value = bits[i]
                lowest = (value >> np.uint32(16)) & np.uint32(1)
                rounded = (value + np.uint32(0x7FFF) + lowest) >> np.uint32(16)
                is_nan = (value & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
                target[i] = np.uint16(np.uint32(0x7FC0) if is_nan else rounded)

        return to_bf16

    def to_f32(bits: Any, target: Any) -> None:
        out = target.view(np.uint32)
        for i in range(target.size):
            out[i] = bits[i]

    return to_f32
