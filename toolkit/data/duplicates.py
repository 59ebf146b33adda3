"""Exact and near duplicates among all documents, found on disk rather than in memory.

Legend: D documents, P hashes of a signature.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.words import I64, U64, run_hashes

SIGNATURE_HASHES = 120
"""P: with 20 bands of 6, a pair of Jaccard index 0.8 is compared with a chance of 99.8 %, one of
0.5 with 27 %; what is compared is judged by all 120."""

_BANDS = 20
_SHINGLE_WORDS = 5
_ODD = np.uint64(0x9E3779B97F4A7C15)
_OTHER_ODD = np.uint64(0x5851F42D4C957F2D)


def signatures(words: U64, offsets: I64) -> NDArray[np.uint32]:
    """MinHash signatures of a batch of documents, `[D, P]`, over their runs of five words.

    Reference:
        Broder 1997, On the resemblance and containment of documents; computed by `rensa`.
    """
    from rensa import RMinHash

    hashes, run_offsets = run_hashes(words, offsets, _SHINGLE_WORDS)
    if len(run_offsets) == 1:
        return np.zeros((0, SIGNATURE_HASHES), dtype=np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes.tolist(), run_offsets.tolist(), SIGNATURE_HASHES, 1
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


def exact_keys(words: U64, offsets: I64) -> NDArray[np.uint64]:
    """Two hashes of all words of each document, `[D, 2]`: equal words, equal keys."""
    keys = np.zeros((len(offsets) - 1, 2), dtype=np.uint64)
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    place = (np.arange(len(words), dtype=np.int64) - starts).astype(np.uint64)
    for column, odd in enumerate((_ODD, _OTHER_ODD)):
        mixed = (words ^ (place * odd + _ODD)) * odd
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _ODD
        mixed ^= mixed >> np.uint64(29)
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        keys[:, column] = sums[offsets[1:]] - sums[offsets[:-1]]
    return keys


def drop_exact(keys: NDArray[np.uint64], rank: NDArray[Any]) -> NDArray[np.bool_]:
    """Which documents are a repetition of a better-ranked one, `[D]`.

    Args:
        keys: `[D, 2]` of `exact_keys`.
        rank: `[D]`; of equal documents the one with the lowest rank stays, then the first.
    """
    order = np.lexsort((np.arange(len(keys)), rank, keys[:, 1], keys[:, 0]))
    repeated = np.zeros(len(keys), dtype=np.bool_)
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    repeated[order[1:]] = same
    return repeated


def drop_near(
    rows: NDArray[np.uint32], rank: NDArray[Any], threshold: float, among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which documents are nearly one of better rank, `[D]`.

    Bands are sorted one at a time, so that memory holds a few numbers a document, and signatures
    may lie on disk.

    Args:
        rows: signatures `[D, P]`, in memory or mapped.
        rank: `[D]`, as in `drop_exact`.
        threshold: of the estimated Jaccard index, in (0, 1].
        among: `[D]`, documents to look at.
    """
    parent = np.arange(len(rows), dtype=np.int64)
    candidates = np.flatnonzero(among)
    candidates = candidates[np.lexsort((candidates, rank[candidates]))]  # best first
    width = SIGNATURE_HASHES // _BANDS
    for band in range(_BANDS):
        keys = _band_keys(rows, candidates, slice(band * width, (band + 1) * width))
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        new_run = np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]])
        first = np.maximum.accumulate(np.where(new_run, np.arange(len(order)), 0))
        others = np.flatnonzero(~new_run)
        # To the first of its run, and to the one before it: long runs hold several families.
        for partner in (first[others], others - 1):
            _join(parent, rows, candidates[order[others]], candidates[order[partner]], threshold)
    roots = _roots(parent)
    dropped = np.zeros(len(rows), dtype=np.bool_)
    best: dict[int, int] = {}
    members = candidates[roots[candidates] != candidates]
    involved = set(roots[members].tolist())
    for index in candidates.tolist():  # best first, so the first seen of a family stays
        root = int(roots[index])
        if root in involved:
            dropped[index] = best.setdefault(root, index) != index
    return dropped


def _band_keys(rows: NDArray[np.uint32], candidates: I64, band: slice) -> U64:
    keys = np.zeros(len(candidates), dtype=np.uint64)
    for start in range(0, len(candidates), 1 << 16):
        part = slice(start, start + (1 << 16))
        for column in rows[candidates[part], band].T.astype(np.uint64):
            keys[part] = (keys[part] ^ column) * _ODD
            keys[part] ^= keys[part] >> np.uint64(29)
        _give_back(rows)
    return keys


def _give_back(rows: NDArray[np.uint32]) -> None:
    """Let go of the pages of a mapped file, so that they do not add up to all of it."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _join(parent: I64, rows: NDArray[np.uint32], a: I64, b: I64, threshold: float) -> None:
    for start in range(0, len(a), 1 << 14):
        part = slice(start, start + (1 << 14))
        alike = (rows[a[part]] == rows[b[part]]).mean(axis=1) >= threshold
        for x, y in zip(a[part][alike].tolist(), b[part][alike].tolist(), strict=True):
            root_x, root_y = _root(parent, x), _root(parent, y)
            parent[max(root_x, root_y)] = min(root_x, root_y)
        _give_back(rows)


def _root(parent: I64, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index


def _roots(parent: I64) -> I64:
    roots = parent
    while True:
        further = roots[roots]
        if (further == roots).all():
            return roots
        roots = further
