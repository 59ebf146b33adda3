"""Exact and near duplicates among all documents, found on disk rather than in memory.

Legend: D documents, P hashes of a signature.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.split import split_ranks
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

    run_hash_values, run_offsets = run_hashes(words, offsets, _SHINGLE_WORDS)
    if len(run_offsets) == 1:
        return np.zeros((0, SIGNATURE_HASHES), dtype=np.uint32)
    signature_matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        run_hash_values.tolist(), run_offsets.tolist(), SIGNATURE_HASHES, 1
    )
    return np.array(signature_matrix.to_rows(), dtype=np.uint32)


def exact_keys(words: U64, offsets: I64) -> NDArray[np.uint64]:
    """Two hashes of all words of each document, `[D, 2]`: equal words, equal keys."""
    keys = np.zeros((len(offsets) - 1, 2), dtype=np.uint64)
    word_starts = np.repeat(offsets[:-1], np.diff(offsets))
    word_places = (np.arange(len(words), dtype=np.int64) - word_starts).astype(np.uint64)
    for column, odd_number in enumerate((_ODD, _OTHER_ODD)):
        # A word is mixed with its place, so that the sum tells texts of the same words in another
        # order apart; sums of all documents are differences of one running sum.
        mixed_words = (words ^ (word_places * odd_number + _ODD)) * odd_number
        mixed_words = (mixed_words ^ (mixed_words >> np.uint64(32))) * _ODD
        mixed_words ^= mixed_words >> np.uint64(29)
        running_sums = np.concatenate(
            [np.zeros(1, dtype=np.uint64), np.cumsum(mixed_words, dtype=np.uint64)]
        )
        keys[:, column] = running_sums[offsets[1:]] - running_sums[offsets[:-1]]
    return keys


def drop_exact(keys: NDArray[np.uint64], rank: NDArray[Any]) -> NDArray[np.bool_]:
    """Which documents are a repetition of a better-ranked one, `[D]`.

    Args:
        keys: `[D, 2]`, as from `exact_keys`.
        rank: `[D]`; of equal documents the one with the lowest rank stays, then the first.
    """
    # Last key first: by both hashes, then rank, then place; each run of equal keys begins with the
    # one that stays.
    rank_order = np.lexsort((np.arange(len(keys)), rank, keys[:, 1], keys[:, 0]))
    is_repeated = np.zeros(len(keys), dtype=np.bool_)
    is_repeated[rank_order[1:]] = (keys[rank_order[1:]] == keys[rank_order[:-1]]).all(axis=1)
    return is_repeated


def keep_copies_together(
    keys: NDArray[np.uint64],
    split: NDArray[np.int8],
    open_to: NDArray[np.int8],
    can_move: NDArray[np.bool_],
    usable: NDArray[np.bool_],
) -> None:
    """Equal documents that all stay go to one split, where their groups are open to it.

    Args:
        keys: `[D, 2]`, as from `exact_keys`.
        split: `[D]`, changed in place.
        open_to: `[D]`, the splits that each document may be in, a bit each.
        can_move: `[D]`, false where a document stays with its group.
        usable: `[D]`, documents to look at.
    """
    usable_rows = np.flatnonzero(usable)
    if not len(usable_rows):
        return
    # Documents that stay with their group decide before those that can move.
    ranks = split_ranks(open_to[usable_rows])
    usable_rows = usable_rows[
        np.lexsort((usable_rows, can_move[usable_rows], ranks, *keys[usable_rows].T))
    ]
    is_first = np.r_[True, (keys[usable_rows[1:]] != keys[usable_rows[:-1]]).any(axis=1)]
    split_of_first = split[usable_rows[is_first]][np.cumsum(is_first) - 1]
    moves = can_move[usable_rows] & (open_to[usable_rows] >> split_of_first & 1).astype(np.bool_)
    split[usable_rows[moves]] = split_of_first[moves]


def drop_near(
    rows: NDArray[np.uint32], rank: NDArray[Any], threshold: float, among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which documents are nearly one of better rank, `[D]`.

    Bands are sorted one at a time, so that memory holds a few numbers per document, and signatures
    may lie on disk.

    Args:
        rows: signatures `[D, P]`, in memory or mapped.
        rank: `[D]`, as in `drop_exact`.
        threshold: least estimated Jaccard index of near duplicates, in (0, 1].
        among: `[D]`, documents to look at.
    """
    parent = np.arange(len(rows), dtype=np.int64)  # of a forest; each tree is a family
    candidates = np.flatnonzero(among)
    candidates = candidates[np.lexsort((candidates, rank[candidates]))]  # best first
    band_width = SIGNATURE_HASHES // _BANDS
    for band in range(_BANDS):
        # Documents that share all hashes of a band stand side by side once its keys are sorted.
        band_keys = _band_keys(rows, candidates, slice(band * band_width, (band + 1) * band_width))
        order = np.argsort(band_keys, kind="stable")
        sorted_keys = band_keys[order]
        is_first = np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]])
        first_of_run = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
        others = np.flatnonzero(~is_first)
        # To the first of its run, and to the one before it: long runs hold several families.
        for partner in (first_of_run[others], others - 1):
            _join(parent, rows, candidates[order[others]], candidates[order[partner]], threshold)
    roots = _roots(parent)
    is_dropped = np.zeros(len(rows), dtype=np.bool_)
    best_of_family: dict[int, int] = {}
    # Most documents are a family of one, which needs no look.
    members = candidates[roots[candidates] != candidates]
    large_families = set(roots[members].tolist())
    for index in candidates.tolist():  # best first, so the first seen of a family stays
        root = int(roots[index])
        if root in large_families:
            is_dropped[index] = best_of_family.setdefault(root, index) != index
    return is_dropped


def _band_keys(rows: NDArray[np.uint32], candidates: I64, band: slice) -> U64:
    """One hash of each candidate's entries of a band, `[candidates]`."""
    hash_keys = np.zeros(len(candidates), dtype=np.uint64)
    # Some rows at a time, so that of a mapped file only their pages are in memory.
    for start in range(0, len(candidates), 1 << 16):
        chunk = slice(start, start + (1 << 16))
        for column in rows[candidates[chunk], band].T.astype(np.uint64):
            hash_keys[chunk] = (hash_keys[chunk] ^ column) * _ODD
            hash_keys[chunk] ^= hash_keys[chunk] >> np.uint64(29)
        _give_back(rows)
    return hash_keys


def _give_back(rows: NDArray[np.uint32]) -> None:
    """Let go of the pages of a mapped file, so that they do not add up to all of it."""
    mapped_file = getattr(rows, "_mmap", None)
    if mapped_file is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped_file.madvise(mmap.MADV_DONTNEED)


def _join(parent: I64, rows: NDArray[np.uint32], ones: I64, others: I64, threshold: float) -> None:
    """Join the families of those pairs whose signatures agree in enough places."""
    for start in range(0, len(ones), 1 << 14):
        chunk = slice(start, start + (1 << 14))
        is_alike = (rows[ones[chunk]] == rows[others[chunk]]).mean(axis=1) >= threshold
        for one, other in zip(
            ones[chunk][is_alike].tolist(), others[chunk][is_alike].tolist(), strict=True
        ):
            one_root, other_root = _find_root(parent, one), _find_root(parent, other)
            # The lower number becomes the root, so that no order of pairs changes the families.
            parent[max(one_root, other_root)] = min(one_root, other_root)
        _give_back(rows)


def _find_root(parent: I64, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]  # shorter paths for the next search
        index = int(parent[index])
    return index


def _roots(parent: I64) -> I64:
    """The root of every document; paths are halved until all are one step long."""
    roots = parent
    while True:
        roots_of_roots = roots[roots]
        if (roots_of_roots == roots).all():
            return roots
        roots = roots_of_roots
