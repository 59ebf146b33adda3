"""Tensors as kernels read them: flat, in blocks, all of one type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = tuple[NDArray[Any], ...]
"""Entries of every tuned model, then of the base where there is one: uint16 (the bits of bfloat16)
or float32."""


class RowReader:
    """Blocks of every input: bfloat16 as its bits where all are, any other mixture as float32.

    Args:
        arrays: the inputs, flat and of equal size; uint16 stands for bfloat16.
    """

    def __init__(self, arrays: Sequence[NDArray[Any] | None]) -> None:
        self._arrays = [array for array in arrays if array is not None]
        self._is_bf16 = all(array.dtype == np.uint16 for array in self._arrays)

    def __call__(self, start: int, stop: int) -> Rows:
        """Entries `start` to `stop`."""
        return tuple(self._typed(array[start:stop]) for array in self._arrays)

    def sample(self, num_runs: int, length: int) -> Rows:
        """`num_runs` runs of `length` entries, evenly spread over the tensor, one after another.

        The distance between runs is odd, so that they begin in different columns of a matrix.
        """
        size = self._arrays[0].size
        stride = (size // num_runs - 1) | 1
        return tuple(
            self._typed(array[: num_runs * stride].reshape(num_runs, stride)[:, :length].ravel())
            for array in self._arrays
        )

    def _typed(self, block: NDArray[Any]) -> NDArray[Any]:
        return block if self._is_bf16 else as_float32(block)


def as_float32(block: NDArray[Any]) -> NDArray[np.float32]:
    """Entries as float32; uint16 are the bits of bfloat16."""
    if block.dtype == np.uint16:
        return (block.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(block, dtype=np.float32)
