"""Splits by hash: which documents train, which tune, which test. Adding documents moves none."""

from __future__ import annotations

import fnmatch
import hashlib

from toolkit.data.source_config import SPLITS, SourceSection, SplitName
from toolkit.data.sources import Document


def stable_unit(*names: object) -> float:
    """A number in [0, 1) that depends on the names alone, not on order, machine or process.

    >>> stable_unit("finance", 1) == stable_unit("finance", 1)
    True
    """
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _is_open(patterns: tuple[str, ...], group: str) -> bool:
    return "*" in patterns or any(fnmatch.fnmatchcase(group, pattern) for pattern in patterns)


def assign_split(document: Document, source: SourceSection, seed: int) -> SplitName | None:
    """The split a document belongs to, or None when its group is open to none.

    Documents of one group that are open to several splits are divided by the hash of the document's
    own id, or with `group_together` of the group's name; a group open to one goes there whole.
    """
    open_to = {
        name: rule.share
        for name in SPLITS
        if (rule := source.split.get(name)) is not None and _is_open(rule.groups, document.group)
    }
    total = sum(open_to.values())
    if total <= 0.0:
        return None
    name_to_hash = document.group if source.group_together else document.id
    point, edge = stable_unit("split", seed, name_to_hash) * total, 0.0
    for name, share in open_to.items():
        edge += share
        if point < edge:
            return name
    return next(reversed(open_to))
