"""Kernel: float32 to 16 bits, up or down at random so that the mean is the number itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import TILE
from toolkit.merge.kernels.source.entries import VECTOR, bits_of, put
from toolkit.merge.kernels.source.primitives import cached_kernel, kernel
from toolkit.merge.kernels.source.random import draw_into

_MAGNITUDE = np.uint32(0x7FFFFFFF)
# Bits of float32: the largest finite bfloat16, and 65504, the largest float16; from 65520 on
# (0x477FF000) infinity is the nearest float16.
_LARGEST_BF16, _LARGEST_F16 = np.uint32(0x7F7F0000), np.uint32(0x477FE000)
_INFINITE, _INFINITE_F16 = np.uint32(0x7F800000), np.uint32(0x477FF000)


@cached_kernel
def round_at_random(values: Any, start: int, key: Any, is_half: bool, out: Any) -> int:
    """Round a block; see `toolkit.merge.rounding`.

    Args:
        values: `[n]`, float32.
        start: place of the first entry in the tensor.
        key: of the tensor's stream, uint64.
        is_half: whether to float16, else to bfloat16.
        out: `[n]`, uint16: the bits of the result.
    """
    words = np.empty(TILE // 2 + VECTOR, np.uint64)
    for at in range(0, values.size, TILE):
        n = min(TILE, values.size - at)
        halves = draw_into(key, start + at, n, words)
        some, target = values[at : at + n], out[at : at + n]
        if is_half:
            for i in range(n):
                target[i] = _to_f16(bits_of(some[i]), halves[i])
        else:
            _to_bf16(some, halves, target)
    return 0


@kernel
def _to_bf16(values: Any, halves: Any, out: Any) -> None:
    for i in range(values.size):
        bits = bits_of(values[i])
        # What is cut off is a fraction of a step; the draw carries it over as often as that.
        carried = np.uint32(bits + np.uint32(halves[i] >> np.uint32(16))) >> np.uint32(16)
        out[i] = np.uint16(carried)
    # What is beyond the largest finite number, and NaN, is rare and done over, to the nearest, so
    # that the first loop has no branch.
    for i in range(values.size):
        if (bits_of(values[i]) & _MAGNITUDE) > _LARGEST_BF16:
            put(values[i], out, i)


@kernel
def _to_f16(bits: Any, half: Any) -> Any:
    size, sign = bits & _MAGNITUDE, (bits >> np.uint32(16)) & np.uint32(0x8000)
    if size > _LARGEST_F16:
        if size > _INFINITE:
            return np.uint16(0x7E00)
        return np.uint16(sign | np.uint32(0x7C00 if size >= _INFINITE_F16 else 0x7BFF))
    exponent = np.int64(size >> np.uint32(23))
    # 113 is 2^-14, from which on halves are normal. 0x1C000 is 127 - 15, the distance between the
    # exponents' biases, in the exponent's place.
    if exponent >= 113:
        rounded = np.uint32(size + np.uint32(half >> np.uint32(19))) >> np.uint32(13)
        return np.uint16(sign | np.uint32(rounded - np.uint32(0x1C000)))
    # A step of a denormal half is 2^-24, whatever the number's own exponent.
    fraction = np.uint64((size & np.uint32(0x7FFFFF)) | np.uint32(0x800000 if exponent else 0))
    # 56 keeps the sum within 64 bits; smaller numbers are under 2^-32 of a step.
    shift: Any = min(126 - exponent, 56)
    draw = np.uint64(half)
    draw = draw << np.uint64(shift - 32) if shift >= 32 else draw >> np.uint64(32 - shift)
    return np.uint16(sign | np.uint32((fraction + draw) >> np.uint64(shift)))
