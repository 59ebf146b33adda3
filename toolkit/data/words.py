"""Texts as numbers: a hash for each word and for each run of words, many documents at once.

Legend: W words of all documents, D documents, R runs of all documents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_WORD = re.compile(r"\w+")
_CHINESE_JAPANESE = (
    "\u3005\u3007\u3021-\u3029\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Han, Kana and Bopomofo: about half a word each, and none of them in words with spaces."""
_SOUTHEAST_ASIAN = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\ua9e0-\ua9ff\uaa60-\uaa7f"
"""Thai, Lao, Tibetan, Burmese, Khmer, Tai: vowel signs and tone marks, which are no letters to
`\\w`, cut them into pieces of a syllable or so."""
_SINGLE = re.compile(f"[{_CHINESE_JAPANESE}]")
_UNSPACED = re.compile(f"[{_CHINESE_JAPANESE}{_SOUTHEAST_ASIAN}]")
_UNITS = re.compile(rf"[{_CHINESE_JAPANESE}]|[^\W{_CHINESE_JAPANESE}]+")
# Twice, as `bytes.translate` wants 256 entries; ASCII never meets the upper half.
_ASCII_WORDS = bytes(ord(chr(n).lower()) if _WORD.match(chr(n)) else 32 for n in range(128)) * 2
"""The lower-case sign for each of ASCII that words are made of, a space for each other."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
# Every odd number has an inverse modulo 2**64.
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))


def count_words(text: str) -> int:
    """Words between spaces; of scripts written without spaces, units as `word_codes` has them.

    >>> count_words("net sales rose 2 %"), count_words("水泵每天早上检查")
    (5, 8)
    """
    spaced_pieces = text.split()
    if text.isascii() or not _UNSPACED.search(text):
        return len(spaced_pieces)
    return sum(
        max(1, len(_UNITS.findall(piece))) if _UNSPACED.search(piece) else 1
        for piece in spaced_pieces
    )


def word_codes(texts: Sequence[str]) -> tuple[NDArray[np.uint32], I64]:
    """A code for every word, without regard to case and punctuation.

    In Chinese and Japanese every character is a word of its own, as no space says where words end.

    Returns:
        Codes `[W]`, and offsets `[D + 1]`: document d has words `offsets[d]` to `offsets[d + 1]`.
    """
    # CRC and not `hash`, which is another in every process.
    flat_codes: list[int] = []
    offsets = [0]
    for text in texts:
        if text.isascii():  # the same, several times as fast
            flat_codes += map(crc32, text.encode().translate(_ASCII_WORDS).split())
        else:
            words = _UNITS if _SINGLE.search(text) else _WORD
            flat_codes += map(crc32, map(str.encode, words.findall(text.lower())))
        offsets.append(len(flat_codes))
    return np.array(flat_codes, dtype=np.uint32), np.array(offsets, dtype=np.int64)


def spread(codes: NDArray[np.uint32]) -> U64:
    """Codes as 64-bit hashes, `[W]`, so that sums and products of them rarely meet."""
    mixed_codes = codes.astype(np.uint64) * _ODD
    return mixed_codes ^ (mixed_codes >> np.uint64(29))


def word_hashes(texts: Sequence[str]) -> tuple[U64, I64]:
    """Hash every word: `spread` of `word_codes`, and the offsets."""
    codes, offsets = word_codes(texts)
    return spread(codes), offsets


def take_rows(flat: NDArray[Any], offsets: I64, rows: NDArray[Any]) -> tuple[NDArray[Any], I64]:
    """The values of some documents only, in the order of `rows`, with their offsets.

    >>> take_rows(np.array([1, 2, 3, 4]), np.array([0, 1, 3, 4]), np.array([1, 2]))
    (array([2, 3, 4]), array([0, 2, 3]))
    """
    row_sizes = np.diff(offsets)[rows]
    row_stops = np.cumsum(row_sizes)
    num_values = int(row_stops[-1]) if len(row_stops) else 0
    value_index = np.arange(num_values) + np.repeat(
        offsets[rows] - (row_stops - row_sizes), row_sizes
    )
    return flat[value_index], np.concatenate([[0], row_stops]).astype(np.int64)


def run_hashes(words: U64, offsets: I64, length: int) -> tuple[U64, I64]:
    """Hash every run of `length` words that lies within one document.

    A document shorter than that has one run: all its words.

    Returns:
        Hashes `[R]`, and offsets `[D + 1]`.
    """
    document_sizes = np.diff(offsets)
    num_runs = np.where(document_sizes > 0, np.maximum(document_sizes - length + 1, 1), 0)
    run_offsets = np.concatenate([[0], np.cumsum(num_runs)]).astype(np.int64)
    run_starts = np.arange(run_offsets[-1]) - np.repeat(run_offsets[:-1] - offsets[:-1], num_runs)
    if len(run_starts) == 0:
        return np.zeros(0, dtype=np.uint64), run_offsets
    run_ends = np.minimum(run_starts + length, np.repeat(offsets[1:], num_runs))
    # Differences of the sums of words times powers of an odd number, modulo 2**64: two look-ups a
    # run, however long it is. Divided by the power it starts at, a run is the same everywhere.
    odd_powers, inverse_powers = (_powers(number, len(words)) for number in (_ODD, _INVERSE))
    running_sums = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum(words * odd_powers, dtype=np.uint64)]
    )
    run_hash_values = (running_sums[run_ends] - running_sums[run_starts]) * inverse_powers[
        run_starts
    ]
    run_hash_values ^= run_hash_values >> np.uint64(31)
    run_hash_values *= _ODD
    run_hash_values ^= run_hash_values >> np.uint64(29)
    return run_hash_values, run_offsets


def _powers(number: np.uint64, count: int) -> U64:
    """`number` to the powers 0 to count - 1, modulo 2**64."""
    power_factors = np.full(count, number, np.uint64)
    power_factors[:1] = 1
    return np.multiply.accumulate(power_factors)


def repeated_fraction(hashes: U64, offsets: I64) -> NDArray[np.float64]:
    """Share of each document's runs that came before in the same document, `[D]`."""
    run_counts = np.diff(offsets)
    # Forty bits of a hash are enough within one document; the others name the document, so that
    # one sort serves all.
    document_numbers = np.repeat(np.arange(len(run_counts), dtype=np.uint64), run_counts)
    sorted_keys = np.sort((document_numbers << np.uint64(40)) | (hashes >> np.uint64(24)))
    repeated_documents = sorted_keys[1:][sorted_keys[1:] == sorted_keys[:-1]] >> np.uint64(40)
    num_repeated = np.bincount(repeated_documents.astype(np.int64), minlength=len(run_counts))
    return num_repeated / np.maximum(run_counts, 1)
