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

# Even, so that a sign and the piece behind it (`_encode_pieces`) stay in one text.
_TOGETHER = 512


class Backend:
    """The core of a tokenizer, read without transformers (which takes seconds to import).

    Args:
        path: of `tokenizer.json`.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._core = Tokenizer.from_file(str(path))
        # A tokenizer's file may say to cut or to fill every text, and to read `<|end|>` in a text
        # as the token: here documents are whole, and all of them is text.
        self._core.no_truncation()
        self._core.no_padding()
        self._core.encode_special_tokens = True
        settings = path.read_text(encoding="utf-8")
        self.has_frame = self._core.post_processor is not None
        self.cuts_at_spaces = can_cut(settings)
        self.cuts_words = can_cut_words(settings)
        self.table = ChunkTable(self._encode_chunks, np.int32)
        self._pieces = Table(self._encode_pieces, np.int32)
        # Ids may have gaps, so the largest one counts.
        largest_id = max(self._core.get_vocab().values(), default=0)
        self._num_bytes = np.zeros(largest_id + 1, np.int64)
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
        word_pieces: list[str] = []
        piece_counts: list[int] = []
        cut_numbers: list[int] = []
        whole_numbers: list[int] = []
        # Numbers say where each chunk stood: pieces and whole words are worked out apart, and put
        # back.
        for number, chunk in enumerate(chunks):
            own_pieces = pieces_of_word(chunk)
            if own_pieces:
                word_pieces += own_pieces
                piece_counts.append(len(own_pieces))
                cut_numbers.append(number)
            else:
                whole_numbers.append(number)
        piece_values, piece_sizes = self._pieces.rows(word_pieces)
        first_pieces = np.cumsum([0, *piece_counts])[:-1]
        piece_sizes = np.add.reduceat(piece_sizes, first_pieces) if cut_numbers else piece_sizes
        whole_values, other_sizes = self._encode_words([chunks[n] for n in whole_numbers])
        return _in_order(
            np.concatenate([piece_values, whole_values]),
            np.concatenate([piece_sizes, other_sizes]),
            cut_numbers + whole_numbers,
        )

    def _encode_pieces(self, pieces: list[str]) -> Learned:
        """Pieces between signs that no token of theirs can reach across: a digit ends letters and
        other signs, a letter ends digits."""
        numbers_by_kind: tuple[list[int], ...] = ([], [], [])
        for number, piece in enumerate(pieces):
            numbers_by_kind[0 if piece[0] == " " else 1 if piece[0].isdigit() else 2].append(number)
        # A sign in front, which no token joins with what follows: it is encoded and left out again.
        learned_rows = [self._encode_words([pieces[n] for n in numbers_by_kind[0]])]
        for kind_numbers, sign in zip(numbers_by_kind[1:], "a0", strict=True):
            joined_pieces = chain.from_iterable((sign, pieces[n]) for n in kind_numbers)
            values, sizes = self._encode_joined(list(joined_pieces))
            value_ends = np.concatenate([[0], np.cumsum(sizes)])
            learned_rows.append(
                (take_rows(values, value_ends, np.arange(1, len(sizes), 2))[0], sizes[1::2])
            )
        values, sizes = (np.concatenate(columns) for columns in zip(*learned_rows, strict=True))
        return _in_order(values, sizes, list(chain(*numbers_by_kind)))

    def _encode_words(self, words: list[str]) -> Learned:
        """Words with a space in front, many in one text; others each by itself."""
        # Only a word with one space in front, and none at its end, surely joins with no neighbor.
        apart_numbers = {
            n
            for n, text in enumerate(words)
            if text[:1] != " " or not text[1:2].strip() or not text[-1:].strip()
        }
        joined_numbers = (
            [n for n in range(len(words)) if n not in apart_numbers]
            if apart_numbers
            else range(len(words))
        )
        single_numbers = sorted(apart_numbers)
        values, sizes = self._encode_joined([words[n] for n in joined_numbers])
        single_values, single_sizes = _flat(self.encode([words[n] for n in single_numbers]))
        return _in_order(
            np.concatenate([values, single_values]),
            np.concatenate([sizes, single_sizes]),
            [*joined_numbers, *single_numbers],
        )

    def _encode_joined(self, words: list[str]) -> Learned:
        """Many words in one text, since each text costs more than a word; the tokens of each are
        told apart by their bytes."""
        word_groups = [
            words[start : start + _TOGETHER] for start in range(0, len(words), _TOGETHER)
        ]
        group_texts = ["".join(group) for group in word_groups]
        # The empty row serves where there are no words: nothing cannot be concatenated.
        learned_rows: list[Learned] = [_flat([])]
        for group, text, ids in zip(
            word_groups, group_texts, self.encode(group_texts), strict=True
        ):
            word_bytes = map(len, group if text.isascii() else map(str.encode, group))
            word_stops = np.cumsum(np.fromiter(word_bytes, np.int64, len(group)))
            token_values = np.array(ids, np.int32)
            token_stops = np.cumsum(self._num_bytes[token_values])
            # A token that ends within a word, or reaches across two, has no stop where the word has
            # one.
            token_ends = np.searchsorted(token_stops, word_stops) + 1
            if (
                token_stops[-1] != word_stops[-1]
                or (token_stops[token_ends - 1] != word_stops).any()
            ):
                learned_rows.append(_flat(self.encode(group)))  # a normalizer changed lengths
            else:
                learned_rows.append((token_values, np.diff(token_ends, prepend=0)))
        token_values, sizes = (
            np.concatenate(columns) for columns in zip(*learned_rows, strict=True)
        )
        return token_values, sizes


def _flat(rows: list[list[int]]) -> Learned:
    row_sizes = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(chain.from_iterable(rows), np.int32, int(row_sizes.sum())), row_sizes


def _in_order(values: NDArray[Any], sizes: NDArray[np.int64], order: Sequence[int]) -> Learned:
    """Rows that were worked out in another order, put back.

    >>> _in_order(np.array([5, 6, 7]), np.array([1, 2]), [1, 0])
    (array([6, 7, 5]), array([2, 1]))
    """
    original_order = np.argsort(np.array(order, np.int64))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    sorted_values, _ = take_rows(values, offsets, original_order)
    return sorted_values, sizes[original_order]
