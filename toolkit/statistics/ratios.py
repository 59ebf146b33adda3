"""Figures are ratios of sums; their parts are summed by group, as what is alike (a document, a
company) is drawn together or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def group_sums(values: ArrayLike, groups: Sequence[str]) -> NDArray[np.float64]:
    """Sums of each group, in the order of their first items.

    Args:
        values: `[..., N]`.
        groups: of each item, `[N]`.

    Returns:
        `[..., G]`.

    >>> group_sums([1.0, 2.0, 4.0], ["b", "a", "b"])
    array([5., 2.])
    """
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    # Sorted by group, stably: each group's items are added in their own order, in every process
    # alike.
    group_order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[group_order], np.arange(len(numbers)))
    sums = np.add.reduceat(np.asarray(values, dtype=np.float64)[..., group_order], starts, axis=-1)
    return np.asarray(sums, dtype=np.float64)


def bits_per_byte(nats: ArrayLike, num_bytes: ArrayLike) -> float:
    """Sum of nats over sum of bytes, in bits: comparable between tokenizers.

    >>> round(bits_per_byte([math.log(2.0) * 8.0], [10.0]), 6)
    0.8
    """
    nat_sum = float(np.sum(np.asarray(nats, dtype=np.float64)))
    return nat_sum / (math.log(2.0) * float(np.sum(np.asarray(num_bytes, dtype=np.float64))))
