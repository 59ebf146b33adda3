"""How a tokenizer and a vocabulary meet a domain: pieces per word, badly split and rare words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORD = re.compile(r"[^\W\d_]+")
BAD_PIECES = 4
"""A word in so many pieces or more counts as badly split."""

_MOST_WORDS = 60_000


@dataclass(frozen=True)
class WordFigures:
    """Words of one role's sample (letters only; numbers split in any tokenizer).

    Attributes:
        num_words: number of words that were looked at.
        tokens_per_word: pieces of a word as it stands in running text, mean over all words.
        badly_split_fraction: share of the words that fall into `BAD_PIECES` or more.
        tokens_per_byte: ratio over all the text, spaces and numbers included.
        rare_fraction: share of the words that the other role's sample does not have; None where
            there is none.
        examples: badly split words, the most frequent first.
    """

    num_words: int
    tokens_per_word: float
    badly_split_fraction: float
    tokens_per_byte: float
    rare_fraction: float | None
    examples: tuple[str, ...]


def count_words(texts: Sequence[str], most: int = _MOST_WORDS) -> Counter[str]:
    """Words as they are written, up to so many."""
    word_counts: Counter[str] = Counter()
    num_words = 0
    for text in texts:
        text_words = _WORD.findall(text)[: most - num_words]
        word_counts.update(text_words)
        num_words += len(text_words)
        if num_words >= most:
            break
    return word_counts


def word_figures(texts: Sequence[str], others: Sequence[str] | None, tokenizer: Any) -> WordFigures:
    """Figures of one role's texts.

    Args:
        texts: texts of the role.
        others: texts of the other role, for what is rare; both are looked at to the same length.
        tokenizer: anything with `count_many(texts)`, the number of tokens of each.
    """
    word_counts = count_words(texts)
    num_words = word_counts.total() or 1
    words = list(word_counts)
    # With a space in front, as a word stands in running text.
    num_pieces = dict(zip(words, tokenizer.count_many([f" {w}" for w in words]), strict=True))
    badly_split = [word for word in words if num_pieces[word] >= BAD_PIECES]
    rare_fraction = None
    if others is not None:
        # Both cut to the shorter one's length: a longer text has more words that the other lacks,
        # and lacks fewer of the other's, by its length alone.
        most_words = max(1, min(word_counts.total(), count_words(others).total()))
        own_counts, other_counts = count_words(texts, most_words), count_words(others, most_words)
        # The first word of a sentence is no other word.
        common_words = {word.lower() for word in other_counts}
        num_rare = sum(n for word, n in own_counts.items() if word.lower() not in common_words)
        rare_fraction = num_rare / (own_counts.total() or 1)
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = sum(tokenizer.count_many(list(texts)))
    return WordFigures(
        num_words=word_counts.total(),
        tokens_per_word=sum(num_pieces[word] * n for word, n in word_counts.items()) / num_words,
        badly_split_fraction=sum(word_counts[word] for word in badly_split) / num_words,
        tokens_per_byte=num_tokens / max(1, num_bytes),
        rare_fraction=rare_fraction,
        examples=tuple(sorted(badly_split, key=lambda word: (-word_counts[word], word))[:5]),
    )


class FolderTokenizer:
    """Counts tokens with the tokenizer of a model folder."""

    def __init__(self, folder: Path) -> None:
        from toolkit.data.encode import Encoder, TextTokenizer

        self.text = TextTokenizer(folder)
        self._encoder = Encoder(folder, 0)

    def count_many(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self.encode_many(texts)]

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        from toolkit.data.sources import Document

        documents = [Document("", "", "", text) for text in texts]
        return [encoded.tokens for encoded in self._encoder.encode(documents)]
