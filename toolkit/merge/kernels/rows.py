"""Tensors as kernels read them: flat, in blocks, all of one type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.read import Checkpoint, Entries

Rows = tuple[NDArray[Any], ...]
"""Entries of every tuned model, then of the base where there is one: uint16 (the bits of bfloat16)
or float32, read-only."""


class RowReader:
    """Blocks of every input: bfloat16 as its bits where all are, any other mixture as float32.

    Args:
        arrays: the inputs, flat and of equal size; uint16 stands for bfloat16.
    """

    def __init__(self, arrays: Sequence[Entries]) -> None:
        self._arrays = list(arrays)
        self._is_bf16 = all(array.dtype == np.uint16 for array in self._arrays)

    def __call__(self, start: int, stop: int) -> Rows:
        """Entries `start` to `stop`."""
        return tuple(self._typed(array[start:stop]) for array in self._arrays)

    def sample(self, num_runs: int, length: int) -> Rows:
        """`num_runs` runs of `length` entries, evenly spread over the tensor, one after another.

        The distance between runs is odd, so that they begin in different columns of a matrix.
        """
        size = self._arrays[0].size
        # The largest odd number up to size // num_runs, so that the last run ends within the
        # tensor.
        stride = (size // num_runs - 1) | 1
        return tuple(self._typed(_runs(array, num_runs, stride, length)) for array in self._arrays)

    def _typed(self, block: NDArray[Any]) -> NDArray[Any]:
        return as_row(block if self._is_bf16 else as_float32(block))


def read_entries(checkpoint: Checkpoint, name: str) -> Entries:
    """The entries of a tensor of floats, flat; types that numpy cannot hold, as float32."""
    array = checkpoint.array(name)
    if array is not None:
        return array
    widened: NDArray[np.float32] = checkpoint.tensor(name).float().reshape(-1).numpy()
    return widened


def _runs(array: Entries, num_runs: int, stride: int, length: int) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        found: NDArray[Any] = array[: num_runs * stride].reshape(num_runs, stride)[:, :length]
        return found.ravel()
    starts = range(0, num_runs * stride, stride)  # the rest need not be gathered
    return np.concatenate([array[start : start + length] for start in starts])


def as_row(block: NDArray[Any]) -> NDArray[Any]:
    """A block as kernels are compiled for it: numba would compile them once more for memory that
    may be written, and again for files in which tensors begin at odd places."""
    row = np.require(block, requirements=("C", "A")).view()
    row.flags.writeable = False
    return row


def as_float32(block: NDArray[Any]) -> NDArray[np.float32]:
    """Entries as float32; uint16 are the bits of bfloat16."""
    if block.dtype == np.uint16:
        return (block.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(block, dtype=np.float32)
