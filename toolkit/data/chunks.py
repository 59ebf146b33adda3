"""Texts cut at spaces where a tokenizer cuts too, so that each word is worked out once.

Natural text repeats its words: what is computed for each word can be looked up from then on, which
is several times faster than computing it, and gives the same.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A chunk goes on across white space, unless that is a single space between two words.
_CHUNK = re.compile(r"\s*\S+(?:(?! \S)\s+\S*)*|\s+")
_UNEVEN = ("  ", "\n ", " \n", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f")
_PLAIN = re.compile(r" [!-&(-~]+")
_PIECE = re.compile(r"[0-9]+|[^A-Za-z0-9]*[A-Za-z]+|[^A-Za-z0-9]+")
_AT_START = "\x00"
"""Begins the key of a chunk without a space in front; other keys stand for a space and the key."""

MAX_KNOWN = 1 << 18
"""Words remembered at most (about 100 MB); then all are forgotten, since rare ones fill the table
and the frequent ones are soon learned again: a limit four times as high is no faster
(dev/LOG.md)."""


def cut_at_spaces(text: str) -> list[str]:
    """Keys of the chunks of a text; a cut is before every single space between two words.

    >>> [chunk_text(key) for key in cut_at_spaces("net sales,\\n  rose 2 %")]
    ['net', ' sales,\\n  rose', ' 2', ' %']
    """
    for sign in _UNEVEN:
        if sign in text:
            break
    else:
        keys = text.split(" ")
        # Other scripts have white space of their own; where there is any, these two differ.
        # Keys are split without the space in front: it is in nearly all, and would be stored with
        # each.
        if text.isascii() or text.replace("\n", "-").split() == text.replace("\n", "-").split(" "):
            keys[0] = _AT_START + keys[0]
            return keys
    return [chunk[1:] if chunk[0] == " " else _AT_START + chunk for chunk in _CHUNK.findall(text)]


def pieces_of_word(chunk: str) -> list[str]:
    """A word with its space in front, cut after letters, after digits and before digits; nothing
    where it holds other signs than ASCII's plain ones. Apostrophes are not plain: "it's".

    >>> pieces_of_word(" (beta2-like),"), pieces_of_word(" it's")
    ([' (beta', '2', '-like', '),'], [])
    """
    if not _PLAIN.fullmatch(chunk):
        return []
    word_pieces = _PIECE.findall(chunk, 1)
    word_pieces[0] = " " + word_pieces[0]
    return word_pieces


def chunk_text(key: str) -> str:
    """The text that a key stands for."""
    return key[1:] if key[:1] == _AT_START else f" {key}"


Learned = tuple[NDArray[Any], NDArray[np.int64]]
"""Numbers of some chunks in a row, and how many each has."""


class Table:
    """Numbers for each key, computed when it is first met.

    Args:
        compute: numbers of each of some keys.
        dtype: of the numbers.
    """

    def __init__(self, compute: Callable[[list[str]], Learned], dtype: Any) -> None:
        self._compute, self._dtype = compute, dtype
        self._forget()

    def _forget(self) -> None:
        # A key that is asked for and not known gets the next place.
        self._place: defaultdict[str, int] = defaultdict(itertools.count().__next__)
        self._values = np.zeros(0, self._dtype)
        self._starts = np.zeros(1, np.int64)

    def rows(self, keys: Sequence[str]) -> Learned:
        """Numbers of all keys in a row, and how many each has."""
        # Only between calls: places that a call has given out must hold until its end.
        if len(self._place) > MAX_KNOWN:
            self._forget()
        num_known = len(self._place)
        # One pass in C gives known keys their places and new ones the next; the new ones are the
        # dict's last.
        key_places = np.fromiter(map(self._place.__getitem__, keys), np.int64, len(keys))
        new_keys = list(itertools.islice(self._place, num_known, None))
        if new_keys:
            self._learn(new_keys)
        key_sizes = np.diff(self._starts)[key_places]
        value_stops = np.cumsum(key_sizes)
        num_values = int(value_stops[-1]) if len(value_stops) else 0
        # A gather of all rows at once: within each row places count up from where its numbers
        # begin.
        value_index = np.arange(num_values) + np.repeat(
            self._starts[key_places] - (value_stops - key_sizes), key_sizes
        )
        return self._values[value_index], key_sizes

    def _learn(self, keys: list[str]) -> None:
        try:
            new_values, new_sizes = self._compute(keys)
        except BaseException:
            self._forget()  # places without numbers
            raise
        self._values = np.concatenate([self._values, new_values.astype(self._dtype)])
        self._starts = np.concatenate([self._starts, self._starts[-1] + np.cumsum(new_sizes)])


class ChunkTable:
    """Numbers for each chunk of a text.

    Args:
        compute: numbers of each of some chunks' texts.
        dtype: of the numbers.
    """

    def __init__(self, compute: Callable[[list[str]], Learned], dtype: Any) -> None:
        self._table = Table(lambda keys: compute([chunk_text(key) for key in keys]), dtype)

    def lookup(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Numbers of all texts in a row, and offsets `[D + 1]` at which each text's begin."""
        keys: list[str] = []
        text_ends = [0]
        for text in texts:
            keys += cut_at_spaces(text)
            text_ends.append(len(keys))
        flat_values, chunk_sizes = self._table.rows(keys)
        value_stops = np.concatenate([[0], np.cumsum(chunk_sizes)])
        return flat_values, value_stops[np.array(text_ends)].astype(np.int64)


def can_cut(tokenizer_json: str) -> bool:
    """Whether a tokenizer's tokens never reach across a single space between two words.

    That holds for byte-level BPE after a pattern of GPT-2's family: spaces are taken at the front
    of a word, and nothing before looks beyond them.

    Args:
        tokenizer_json: as in `tokenizer.json`.
    """
    tokenizer_table = json.loads(tokenizer_json)
    if tokenizer_table.get("model", {}).get("type") != "BPE" or tokenizer_table["model"].get(
        "dropout"
    ):
        return False
    # NFC composes nothing across a space; other normalizers strip, add or replace some.
    if (tokenizer_table.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return False
    # Tokens of the vocabulary beside the model's are found before text is cut; one with a space
    # would reach across.
    for token in tokenizer_table.get("added_tokens", ()):
        if not token["special"] and (
            token["lstrip"] or token["rstrip"] or any(sign.isspace() for sign in token["content"])
        ):
            return False
    pre_tokenizer = tokenizer_table.get("pre_tokenizer") or {}
    pre_tokenizers = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    splits_words = False
    for step in pre_tokenizers:
        if step.get("type") == "ByteLevel":
            # It stands before a text as a whole, and would come before each of its chunks.
            if step.get("add_prefix_space"):
                return False
            splits_words = splits_words or step.get("use_regex", True)
        elif step.get("type") == "Split":
            split_pattern = step.get("pattern", {}).get("Regex", "")
            if _is_word_pattern(split_pattern) and step.get("behavior") == "Isolated":
                splits_words = True
        elif step.get("type") != "Digits":
            return False
    return splits_words


def _is_word_pattern(pattern: str) -> bool:
    """Patterns of GPT-2, cl100k, o200k, Llama 3 and Qwen end alike; spaces are taken in front."""
    pattern_rest = pattern.replace(r"\s+(?!\S)", "").replace(r"\s*[\r\n]+", "")
    pattern_rest = pattern_rest.replace(r"[^\s\p{L}\p{N}]", "").replace(r"\s+", "")
    # White space anywhere else in a pattern could take the space in front of the next word.
    return pattern.endswith((r"\s+(?!\S)|\s+", r"\s+(?!\S)")) and r"\s" not in pattern_rest


_CUTS_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + "| ?"
        r"[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for digits in (r"\p{N}{1,3}", r"\p{N}")
    ),
)
"""Patterns of GPT-2, Llama 3 and Qwen 2; the first is what `ByteLevel` does by itself. In all of
them letters end before anything else, digits too, and other signs before a digit."""


def can_cut_words(tokenizer_json: str) -> bool:
    """Whether a tokenizer also cuts words where `pieces_of_word` does.

    Args:
        tokenizer_json: as in `tokenizer.json`.
    """
    if not can_cut(tokenizer_json):
        return False
    tokenizer_table = json.loads(tokenizer_json)
    # Tokens found in the text before it is cut could reach across.
    own_tokens = [
        token["content"]
        for token in tokenizer_table.get("added_tokens", ())
        if not token["special"]
    ]
    if any(len(_PIECE.findall(text)) > 1 for text in own_tokens):
        return False
    pre_tokenizers = tokenizer_table["pre_tokenizer"].get(
        "pretokenizers", [tokenizer_table["pre_tokenizer"]]
    )
    return all(s["type"] != "Split" or s["pattern"]["Regex"] in _CUTS_WORDS for s in pre_tokenizers)
