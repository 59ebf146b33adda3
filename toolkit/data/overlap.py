"""What training documents have in common with evaluation ones, by runs of words.

Legend: K different runs of the evaluation texts, E evaluation texts, D documents, R their runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.words import I64, U64, run_hashes, word_hashes
from toolkit.stage import write_atomically

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Overlap:
    """Where the runs of the evaluation texts are, and how much of them is too much.

    Attributes:
        folder: that `write_known_runs` wrote to.
        words: length of a run.
        max_fraction: of a training document's runs that may be among them.
        max_contained: share of one evaluation text's runs that a training document may hold.
    """

    folder: Path
    words: int
    max_fraction: float
    max_contained: float

    def is_clean(self, words: U64, offsets: I64) -> NDArray[np.bool_]:
        """Which documents stay within both limits, `[D]`.

        Args:
            words: hashes of the words of all documents (`word_hashes`).
            offsets: of each document in them, `[D + 1]`.
        """
        known_runs, owner_texts, text_sizes = (
            np.load(self.folder / f"known.{part}.npy", mmap_mode="r")
            for part in ("runs", "owner", "sizes")
        )
        runs = run_hashes(words, offsets, self.words)
        known_shares, contained_shares = shares(*runs, known_runs, owner_texts, text_sizes)
        return (known_shares <= self.max_fraction) & (contained_shares <= self.max_contained)


def write_known_runs(folder: Path, texts: Sequence[str], words: int) -> None:
    """Write the hashes of all runs of words in evaluation texts, sorted, for `Overlap`."""
    hashes, offsets = run_hashes(*word_hashes(texts), words)
    known_runs, first_places = np.unique(hashes, return_index=True)
    owner_texts = (np.searchsorted(offsets, first_places, side="right") - 1).astype(np.int32)
    arrays_by_part: dict[str, NDArray[Any]] = {
        "runs": known_runs,
        "owner": owner_texts,
        "sizes": np.bincount(owner_texts, minlength=len(texts)),
    }
    for part, array in arrays_by_part.items():
        with write_atomically(folder / f"known.{part}.npy", "wb") as file:
            np.save(file, array)


def shares(
    hashes: U64, offsets: I64, known: U64, owner: NDArray[np.int32], sizes: I64
) -> tuple[Floats, Floats]:
    """How much of each document is known, and how much of any one text it holds.

    A short document may be a page of an evaluation text; a long one may hold a whole text and be
    mostly something else.

    Args:
        hashes: runs of the documents, `[R]`.
        offsets: of each document in them, `[D + 1]`.
        known: runs of the evaluation texts, sorted, `[K]`.
        owner: the first text that holds each known run, `[K]`.
        sizes: how many runs each text owns, `[E]`.

    Returns:
        Share of each document's runs that are known, and the largest share of one text's runs that
        are in the document, `[D]` each.
    """
    num_runs = np.diff(offsets)
    no_shares = np.zeros(len(num_runs))
    if len(known) == 0:
        return no_shares, no_shares
    # Few runs are known: those that cannot be are passed over before the search.
    likely_places = _may_be_in(known, hashes)
    # Hashes above all known ones would be compared behind the end.
    known_places = np.minimum(np.searchsorted(known, hashes[likely_places]), len(known) - 1)
    is_known = known[known_places] == hashes[likely_places]
    documents = np.repeat(np.arange(len(num_runs)), num_runs)[likely_places][is_known]
    known_shares = np.bincount(documents, minlength=len(num_runs)) / np.maximum(num_runs, 1)
    # A run that a document repeats counts once toward the text that owns it.
    documents, run_numbers = np.divmod(
        np.unique(documents * len(known) + known_places[is_known]), len(known)
    )
    document_texts, common_runs = np.unique(
        documents * len(sizes) + owner[run_numbers], return_counts=True
    )
    documents, text_numbers = np.divmod(document_texts, len(sizes))
    contained_shares = no_shares.copy()
    # Unbuffered, as a document stands here once for each text that it shares runs with.
    np.maximum.at(contained_shares, documents, common_runs / sizes[text_numbers])
    return known_shares, contained_shares


def _may_be_in(known: U64, hashes: U64) -> I64:
    """Places of hashes whose last bits some known one has too: few, and quicker than searching."""
    # At least sixteen places to a known run, so that few others pass by chance, as long as the
    # table stays within 64 MiB.
    low_bits = np.uint64((1 << max(10, min(26, (16 * len(known)).bit_length()))) - 1)
    low_bits_known = np.zeros(int(low_bits) + 1, np.bool_)
    low_bits_known[known & low_bits] = True
    return np.flatnonzero(low_bits_known[hashes & low_bits])
