"""Duplicates and overlaps: found where they are, and not where they are not."""

from __future__ import annotations

import random
import re
from zlib import crc32

import numpy as np
import pytest

from toolkit.data.duplicates import drop_exact, drop_near, exact_keys, signatures
from toolkit.data.words import count_words, repeated_fraction, run_hashes, word_codes, word_hashes


def text(seed: int, length: int = 200) -> list[str]:
    chance = random.Random(seed)  # noqa: S311
    return [f"w{chance.randrange(5000)}" for _ in range(length)]


def test_case_and_punctuation_do_not_matter_but_order_does():
    words = word_hashes(["Net sales, rose!", "net SALES rose", "rose net sales"])
    keys = exact_keys(*words)
    assert (keys[0] == keys[1]).all()
    assert (keys[0] != keys[2]).all()
    rank = np.array([1, 0, 0])
    assert drop_exact(keys, rank).tolist() == [True, False, False]  # the better rank stays


def test_near_duplicates_are_found_and_others_are_not():
    original = text(1)
    changed = [*original]
    changed[100] = "else"  # 5 of 196 runs of five words differ: Jaccard 191/201 = 0.95
    half = original[:100] + text(2, 100)  # about 96/296 = 0.32
    documents = [" ".join(words) for words in (original, changed, half, text(3), original[5:])]
    words = word_hashes(documents)
    rows = signatures(*words)
    rank = np.array([2, 2, 2, 2, 0])
    everything = np.ones(5, dtype=np.bool_)
    assert drop_near(rows, rank, 0.8, everything).tolist() == [True, True, False, False, False]
    among = np.array([True, True, True, True, False])
    assert drop_near(rows, rank, 0.8, among).tolist() == [False, True, False, False, False]


def test_signatures_estimate_the_jaccard_index():
    one = text(1, 1000)
    for kept in (900, 700, 400):
        other = one[:kept] + text(kept, 1000 - kept)
        words = word_hashes([" ".join(one), " ".join(other)])
        a, b = signatures(*words)
        shared = kept - 4
        true = shared / (2 * 996 - shared)
        assert abs((a == b).mean() - true) < 0.14  # three standard errors of 120 hashes


def test_runs_stay_within_documents():
    words = word_hashes(["a b c d", "c d", "", "d a b"])
    hashes, offsets = run_hashes(*words, 3)
    assert offsets.tolist() == [0, 2, 3, 3, 4]
    alone, _ = run_hashes(*word_hashes(["b c d"]), 3)
    assert hashes[1] == alone[0]
    assert len(set(hashes.tolist())) == 4


def test_repeated_fraction_counts_runs_that_came_before():
    words = word_hashes(["a b a b a b", "a b c d"])
    # Runs of two: ab ba ab ba ab -> three of five came before; none in the other document.
    assert repeated_fraction(*run_hashes(*words, 2)).tolist() == [0.6, 0.0]


def test_words_of_ascii_texts_are_found_faster_and_are_the_same():
    signs = "".join(map(chr, range(128)))
    text = f"{signs} Net-sales_2 rose\t{signs[::-1]}"
    quick, offsets = word_codes([text])
    slow, other = word_codes([text + " \u00e9"])  # one word more, and no ASCII text
    assert quick.tolist() == slow[:-1].tolist()
    assert (offsets[1] + 1, len(quick)) == (other[1], offsets[1])


LETTERS = {
    "Chinese": range(0x4E00, 0x4F00),
    "hiragana": range(0x3041, 0x3096),
    "katakana": range(0x30A1, 0x30FA),
    "rare characters": range(0x20000, 0x20100),
    "Thai": [*range(0x0E01, 0x0E2F), *range(0x0E31, 0x0E3A)],
    "Khmer": range(0x1780, 0x17D0),
    "Burmese": range(0x1000, 0x1040),
    "Lao": [*range(0x0E81, 0x0EB0, 3), *range(0x0EB1, 0x0EBC)],
}


def unspaced(script: str, seed: int, length: int = 400) -> str:
    chance = random.Random(f"{script} {seed}")  # noqa: S311
    return "".join(chr(chance.choice(LETTERS[script])) for _ in range(length))


@pytest.mark.parametrize("script", LETTERS)
def test_texts_without_spaces_have_words(script: str):
    assert count_words(unspaced(script, 1)) > 40
    words = word_hashes([unspaced(script, n) for n in range(3)])
    assert min(np.diff(words[1])) > 40
    one, other = unspaced(script, 1), unspaced(script, 2)
    changed = one[:200] + other[:4] + one[204:]
    rows = signatures(*word_hashes([one, changed, other, one[:200] + other[:200]]))
    ranks, everything = np.zeros(4), np.ones(4, dtype=np.bool_)
    assert drop_near(rows, ranks, 0.8, everything).tolist() == [False, True, False, False]


def test_texts_with_spaces_have_the_words_they_had():
    texts = [
        "Net sales rose 2 %",
        "caf\u00e9 cr\u00e8me",
        "\u0434\u043e\u043c \u0438 \u0441\u0430\u0434",
        "\ud55c\uad6d\uc5b4 \uacf5\ubd80",
    ]
    for text in texts:
        assert count_words(text) == len(text.split())
        codes, _ = word_codes([text])
        assert codes.tolist() == [crc32(word.lower().encode()) for word in re.findall(r"\w+", text)]
    mixed = "see \u6c34\u6cf5 now"
    assert count_words(mixed) == 4
    assert len(word_codes([mixed])[0]) == 4
