"""Stochastic rounding: what a merge asks of 16-bit weights arrives on average.

Continued pre-training moves most weights by one or two steps of bfloat16, so a fraction of such a
move lies within half a step, and rounding to the nearest stores none of it. Here a number between
two neighbors goes up as often as its place between them says: the mean of what is stored is the
number. Numbers that the type holds stay as they are; beyond the largest finite one, where there
is no neighbor to go up to, rounding is to the nearest.

Draws come from `kernels.stream` by seed, tensor name and place of the entry, so that one merge has
one result on any number of threads, in any shards, in memory and on disk, by kernel or without. All
merges of a search share them: along a path such as α, each entry steps once and never back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.read import TORCH_NAMES, is_float
from toolkit.errors import warn
from toolkit.merge.kernels import compiled
from toolkit.merge.kernels.stream import draw_halves, stream_key
from toolkit.merge.task import name_in_step

ROUNDED = ("BF16", "F16")
"""Types that numbers are rounded to at random, by the format's names."""

_STREAM = -1
"""Number of the stream of draws; those of random methods count from 0, one for each model."""


@dataclass(frozen=True)
class StochasticRounding:
    """The draws of one merge.

    Attributes:
        seed: seed of the merge.
        step: name of an intermediate merge, of which others are made: with the same draws twice,
            what the first rounded up the second would round up again.
    """

    seed: int
    step: str = ""

    def of_tensor(self, name: str, dtype: str) -> TensorRounding | None:
        """The rounding of one tensor; None for types that it has no effect on."""
        if dtype not in ROUNDED:
            return None
        key = stream_key(self.seed, name_in_step(self.step, name), _STREAM)
        return TensorRounding(key, dtype)


@dataclass(frozen=True)
class TensorRounding:
    """Rounds the entries of one tensor, in blocks.

    Attributes:
        key: key of the tensor's stream.
        dtype: type rounded to, `BF16` or `F16`.
    """

    key: int
    dtype: str

    def __call__(self, values: NDArray[np.float32], start: int) -> NDArray[np.uint16]:
        """Bits of the rounded entries.

        Args:
            values: entries, `[n]`.
            start: place of the first one in the tensor.
        """
        out = np.empty(values.size, np.uint16)
        is_half = self.dtype == "F16"
        if compiled.can_import_kernels():
            try:
                compiled.round_at_random(values, start, np.uint64(self.key), is_half, out)
                return out
            except compiled.KernelError as error:
                compiled.announce_fallback(str(error).splitlines()[0])
        halves = draw_halves(self.key, start, start + values.size)
        return (_to_f16 if is_half else _to_bf16)(values.view(np.uint32), halves)


def warn_of_no_effect(dtypes: Collection[str]) -> None:
    """Say of which written types a merge with `rounding: stochastic` has tensors in vain.

    Args:
        dtypes: types that merged tensors are written in.
    """
    wide = {dtype for dtype in set(dtypes) - set(ROUNDED) if is_float(dtype)}
    if others := sorted(TORCH_NAMES[dtype] for dtype in wide):
        warn(
            f"rounding: stochastic has no effect on tensors written in {', '.join(others)}; it is "
            "for bfloat16 and float16 (out_dtype)."
        )


def _to_bf16(bits: NDArray[np.uint32], halves: NDArray[np.uint32]) -> NDArray[np.uint16]:
    size = bits & np.uint32(0x7FFFFFFF)
    rounded = (bits + (halves >> np.uint32(16))) >> np.uint32(16)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # 0x7F7F0000 is the largest finite bfloat16. Beyond 0x7F800000 is NaN, whose payload a carry
    # could turn into infinity.
    rounded = np.where(size > 0x7F7F0000, nearest, rounded)
    return np.where(size > 0x7F800000, 0x7FC0, rounded).astype(np.uint16)


def _to_f16(bits: NDArray[np.uint32], halves: NDArray[np.uint32]) -> NDArray[np.uint16]:
    size, sign = bits & np.uint32(0x7FFFFFFF), (bits >> np.uint32(16)) & np.uint32(0x8000)
    # 13 bits are cut off, and as many of the draw decide on the carry. 0x1C000 is 127 - 15, the
    # distance between the exponents' biases, in the exponent's place.
    normal: NDArray[Any] = ((size + (halves >> np.uint32(19))) >> np.uint32(13)) - np.uint32(
        0x1C000
    )
    exponent = (size >> np.uint32(23)).astype(np.int64)
    # A step of a denormal half is 2^-24, whatever the number's own exponent.
    fraction = ((size & 0x7FFFFF) | np.where(exponent > 0, 0x800000, 0)).astype(np.uint64)
    # 56 keeps the sum below within 64 bits; what is smaller is under 2^-32 of a step, which no draw
    # of 32 bits could tell from nothing.
    shift = np.clip(126 - exponent, 0, 56)
    left = np.maximum(shift - 32, 0).astype(np.uint64)
    right = np.maximum(32 - shift, 0).astype(np.uint64)
    draw = (halves.astype(np.uint64) << left) >> right
    denormal = (fraction + draw) >> shift.astype(np.uint64)
    # 113 is 2^-14, from which on halves are normal; 0x477FE000 is 65504, the largest, and
    # 0x477FF000 is 65520, from which on infinity is the nearest.
    rounded = np.where(exponent >= 113, normal, denormal.astype(np.uint32))
    rounded = np.where(size > 0x477FE000, np.where(size >= 0x477FF000, 0x7C00, 0x7BFF), rounded)
    return np.where(size > 0x7F800000, 0x7E00, sign | rounded).astype(np.uint16)
