"""Random numbers by place: number `i` of a stream follows from the stream's key and `i` alone.

So any block of a tensor can be drawn by itself, on any thread and by any implementation, and the
masks of dare and della are the same bits from the kernels as from the torch definitions. The
generator is SplitMix64 (Steele, Lea and Flood 2014): `mix(key + (i // 2 + 1) * GAMMA)` holds the
numbers `i` (even) in its lower and `i + 1` in its upper half; of a half the upper 24 bits count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


GAMMA = 0x9E3779B97F4A7C15
FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9
SECOND_MULTIPLIER = 0x94D049BB133111EB
STEP = 2.0**-24
"""Distance between neighboring numbers, as of torch's float32 uniform ones."""


class EntryStream:
    """The `generator` that the engine gives to random methods: one stream for each model in turn.

    Args:
        seed: of the merge.
        name: of the tensor, so that the order of tensors cannot matter.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._name = seed, name
        self._next = 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """A number in [0, 1) for each entry of the next model's tensor: `shape`, float32, CPU."""
        import torch

        key = stream_key(self._seed, self._name, self._next)
        self._next += 1
        size = int(np.prod(tuple(shape), dtype=np.int64))
        return torch.from_numpy(draw(key, 0, size)).reshape(tuple(shape))


def stream_key(seed: int, name: str, number: int) -> int:
    """The key of a tensor's stream for the `number`-th tuned model, a 64-bit number."""
    # Python's own hash of a text differs from process to process.
    digest = hashlib.sha256(f"{seed}\0{name}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def draw(key: int, start: int, stop: int) -> NDArray[np.float32]:
    """Numbers `start` to `stop` of a stream, each in [0, 1), float32.

    >>> draw(0, 0, 4).tolist()[2:] == draw(0, 2, 4).tolist()
    True
    """
    return (draw_halves(key, start, stop) >> np.uint32(8)).astype(np.float32) * np.float32(STEP)


def draw_halves(key: int, start: int, stop: int) -> NDArray[np.uint32]:
    """The same numbers as all 32 bits of their halves."""
    first = start // 2
    place = np.arange(first + 1, (stop + 1) // 2 + 1, dtype=np.uint64)
    # Arrays of uint64 wrap around without a warning, as the generator means it.
    z = np.uint64(key) + place * np.uint64(GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST_MULTIPLIER)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND_MULTIPLIER)
    z = z ^ (z >> np.uint64(31))
    # Little-endian by name: which half of a word comes first must not depend on the machine.
    halves: NDArray[np.uint32] = z.astype("<u8").view("<u4")
    return halves[start - 2 * first : stop - 2 * first]
