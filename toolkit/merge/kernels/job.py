"""What a kernel is given: one tensor of a merge, read in blocks."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.merge.kernels.rows import RowReader
from toolkit.merge.kernels.stream import stream_key
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.registry import ParameterValues

JobMemory = dict[Hashable, Any]
"""What was found out about the inputs of one tensor, by what it is: a table of ranks, an angle."""


@dataclass(frozen=True)
class Job:
    """One tensor to be merged.

    Attributes:
        read: gives blocks of the inputs.
        shape: of the tensor.
        parameters: keyword arguments of the method.
        workers: threads.
        memory: keeps what depends on the inputs alone, from one call to the next.
        seed: of random methods.
        name: of the tensor, for random methods.
    """

    read: RowReader
    shape: tuple[int, ...]
    parameters: ParameterValues
    workers: WorkerThreads
    memory: JobMemory
    seed: int = 0
    name: str = ""

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def row_length(self) -> int:
        """Entries along dimension 1; a vector is one row."""
        return self.shape[1] if len(self.shape) > 1 else self.size

    def keys(self, num_models: int) -> NDArray[np.uint64]:
        """Of the models' random streams, `[M]`."""
        return np.array([stream_key(self.seed, self.name, m) for m in range(num_models)], np.uint64)
