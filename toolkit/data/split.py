"""Splits by hash: which documents train, which tune, which test. Adding documents moves none."""

from __future__ import annotations

import fnmatch
import hashlib

import numpy as np
from numpy.typing import NDArray

from toolkit.data.config import SPLITS, SourceSection, SplitName
from toolkit.data.sources import Document


def stable_unit(*names: object) -> float:
    """A number in [0, 1) that depends on the names alone, not on order, machine or process.

    >>> stable_unit("finance", 1) == stable_unit("finance", 1)
    True
    """
    # Names do not hold zeros in practice, so ("ab", "c") and ("a", "bc") are told apart.
    name_digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return int.from_bytes(name_digest[:8], "big") / 2.0**64


def _is_open(patterns: tuple[str, ...], group: str) -> bool:
    return "*" in patterns or any(fnmatch.fnmatchcase(group, pattern) for pattern in patterns)


def open_splits(document: Document, source: SourceSection) -> dict[SplitName, float]:
    """The splits that a document's group is open to, with their shares."""
    return {
        name: rule.fraction
        for name in SPLITS
        if (rule := source.split.get(name)) is not None and _is_open(rule.groups, document.group)
    }


def open_mask(document: Document, source: SourceSection) -> int:
    """The splits that a document may go to, a bit each: bit n for `SPLITS[n]`."""
    shares_by_split = open_splits(document, source)
    return sum(1 << SPLITS.index(name) for name, share in shares_by_split.items() if share > 0.0)


def split_ranks(masks: NDArray[np.int8]) -> NDArray[np.int8]:
    """Which of equal documents stays and decides their split: the one with the lowest rank.

    It depends on the splits that are open, never on the one that was drawn: else a text that stands
    often would go where the preference lies, with near certainty. What is for evaluation alone
    stays before what may be trained on, and what is for the test alone before that.

    Args:
        masks: of `open_mask`.

    Returns:
        0 for the test alone, 1 for evaluation alone, 2 otherwise.

    >>> split_ranks(np.array([0b100, 0b110, 0b010, 0b111, 0b001], np.int8)).tolist()
    [0, 1, 1, 2, 2]
    """
    train_bit, test_bit = (1 << SPLITS.index(name) for name in ("train", "test"))
    return np.where(masks == test_bit, 0, np.where(masks & train_bit, 2, 1)).astype(np.int8)


def assign_split(document: Document, source: SourceSection, seed: int) -> SplitName | None:
    """The split a document belongs to, or None when its group is open to none.

    Documents of one group that are open to several splits are divided by the hash of the document's
    own id, or with `group_together` of the group's name; a group open to one goes there whole.
    """
    open_to = open_splits(document, source)
    total_share = sum(open_to.values())
    if total_share <= 0.0:
        return None
    name_to_hash = document.group if source.group_together else document.id
    hash_point, upper_edge = stable_unit("split", seed, name_to_hash) * total_share, 0.0
    for name, share in open_to.items():
        upper_edge += share
        if hash_point < upper_edge:
            return name
    # Sums are rounded, so the last edge may lie a hair below the total.
    return next(reversed(open_to))
