"""A tokenizer's own fast core, spared what it has done before.

Words are remembered with their tokens, and what a word is made of too: most new words of a large
corpus are known pieces, put together in a new way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.chunks import ChunkTable, Learned, Table, can_cut, can_cut_words, pieces_of_word
from toolkit.data.words import take_rows

_TOGETHER = 512


class Backend:
    """The core of a tokenizer, read without transformers (which takes seconds to import).

    Args:
        path: of `tokenizer.json`.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._core = Tokenizer.from_file(str(path))
        self._core.no_truncation()
        self._core.no_padding()
        self._core.encode_special_tokens = True
        settings = path.read_text(encoding="utf-8")
        self.has_frame = self._core.post_processor is not None
        self.cuts_at_spaces = can_cut(settings)
        self.cuts_words = can_cut_words(settings)
        self.table = ChunkTable(self._encode_chunks, np.int32)
        self._pieces = Table(self._encode_pieces, np.int32)
        self._num_bytes = np.zeros(self._core.get_vocab_size() + 1, np.int64)
        for text, number in self._core.get_vocab(with_added_tokens=False).items():
            self._num_bytes[number] = len(text)  # a sign a byte, in byte-level vocabularies
        for number, token in self._core.get_added_tokens_decoder().items():
            self._num_bytes[number] = len(token.content.encode())

    def vocabulary(self) -> dict[str, int]:
        return dict(self._core.get_vocab())

    def frame(self, text: str) -> list[int]:
        """Tokens of a text with those that the tokenizer's own file puts around it."""
        return list(self._core.encode(text, add_special_tokens=True).ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        item = self._core.encode(text, add_special_tokens=False)
        return item.ids, item.offsets

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [item.ids for item in self._core.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_chunks(self, chunks: list[str]) -> Learned:
        """Words of plain signs by their pieces; others whole."""
        if not self.cuts_words:
            return self._encode_words(chunks)
        pieces: list[str] = []
        counts: list[int] = []
        cut: list[int] = []
        whole: list[int] = []
        for number, chunk in enumerate(chunks):
            own = pieces_of_word(chunk)
            if own:
                pieces += own
                counts.append(len(own))
                cut.append(number)
            else:
                whole.append(number)
        values, sizes = self._pieces.rows(pieces)
        firsts = np.cumsum([0, *counts])[:-1]
        sizes = np.add.reduceat(sizes, firsts) if cut else sizes
        others, other_sizes = self._encode_words([chunks[n] for n in whole])
        return _in_order(
            np.concatenate([values, others]), np.concatenate([sizes, other_sizes]), cut + whole
        )

    def _encode_pieces(self, pieces: list[str]) -> Learned:
        """Pieces between signs that no token of theirs can reach across: a digit ends letters and
        other signs, a letter ends digits."""
        kinds: tuple[list[int], ...] = ([], [], [])
        for number, piece in enumerate(pieces):
            kinds[0 if piece[0] == " " else 1 if piece[0].isdigit() else 2].append(number)
        rows = [self._encode_words([pieces[n] for n in kinds[0]])]
        for own, sign in zip(kinds[1:], "a0", strict=True):
            between = chain.from_iterable((sign, pieces[n]) for n in own)
            values, sizes = self._encode_joined(list(between))
            ends = np.concatenate([[0], np.cumsum(sizes)])
            rows.append((take_rows(values, ends, np.arange(1, len(sizes), 2))[0], sizes[1::2]))
        values, sizes = (np.concatenate(columns) for columns in zip(*rows, strict=True))
        return _in_order(values, sizes, list(chain(*kinds)))

    def _encode_words(self, words: list[str]) -> Learned:
        """Words with a space in front, many in one text; others each by itself."""
        apart = {
            n
            for n, text in enumerate(words)
            if text[:1] != " " or not text[1:2].strip() or not text[-1:].strip()
        }
        together = [n for n in range(len(words)) if n not in apart] if apart else range(len(words))
        alone = sorted(apart)
        values, sizes = self._encode_joined([words[n] for n in together])
        others, other_sizes = _flat(self.encode([words[n] for n in alone]))
        return _in_order(
            np.concatenate([values, others]),
            np.concatenate([sizes, other_sizes]),
            [*together, *alone],
        )

    def _encode_joined(self, words: list[str]) -> Learned:
        """Many words in one text, since each text costs more than a word; the tokens of each are
        told apart by their bytes."""
        groups = [words[start : start + _TOGETHER] for start in range(0, len(words), _TOGETHER)]
        texts = ["".join(group) for group in groups]
        rows: list[Learned] = [_flat([])]
        for group, text, ids in zip(groups, texts, self.encode(texts), strict=True):
            lengths = map(len, group if text.isascii() else map(str.encode, group))
            stops = np.cumsum(np.fromiter(lengths, np.int64, len(group)))
            values = np.array(ids, np.int32)
            reached = np.cumsum(self._num_bytes[values])
            ends = np.searchsorted(reached, stops) + 1
            if reached[-1] != stops[-1] or (reached[ends - 1] != stops).any():
                rows.append(_flat(self.encode(group)))  # a normalizer changed lengths
            else:
                rows.append((values, np.diff(ends, prepend=0)))
        values, sizes = (np.concatenate(columns) for columns in zip(*rows, strict=True))
        return values, sizes


def _flat(rows: list[list[int]]) -> Learned:
    sizes = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(chain.from_iterable(rows), np.int32, int(sizes.sum())), sizes


def _in_order(values: NDArray[Any], sizes: NDArray[np.int64], order: Sequence[int]) -> Learned:
    """Rows that were worked out in another order, put back.

    >>> _in_order(np.array([5, 6, 7]), np.array([1, 2]), [1, 0])
    (array([6, 7, 5]), array([2, 1]))
    """
    back = np.argsort(np.array(order, np.int64))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    sorted_values, _ = take_rows(values, offsets, back)
    return sorted_values, sizes[back]
