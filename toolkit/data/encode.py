"""Texts to token ids: plain, rearranged for fill-in-the-middle, or as conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.data.config import FimSection
from toolkit.data.sources import Document
from toolkit.data.split import stable_unit
from toolkit.errors import DataError

_KNOWN_FIM = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)


@dataclass(frozen=True)
class Encoded:
    """Tokens of a document without separators, and which of them are targets (None: all)."""

    tokens: list[int]
    targets: list[bool] | None = None


@dataclass(frozen=True)
class Encoder:
    """What the tokens of a document depend on, small enough to hand to a process.

    Attributes:
        folder: of the tokenizer.
        seed: of the recipe, for what is random in fill-in-the-middle.
        fim: settings, or None for plain text.
        fim_ids: ids of prefix, suffix and middle, where `fim` is given.
    """

    folder: Path
    seed: int
    fim: FimSection | None = None
    fim_ids: tuple[int, int, int] | None = None

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """Tokens of each document; text that looks like a special token stays text."""
        if any(document.messages for document in documents):
            tokenizer = _full_tokenizer(self.folder)
            return [_conversation(tokenizer, json.loads(d.messages or "[]")) for d in documents]
        if self.fim is None or self.fim_ids is None:
            return [Encoded(ids) for ids in _plain(self.folder, [d.text for d in documents])]
        cuts = [_fim_cut(d, self.fim, self.seed) for d in documents]
        parts = [part for cut, _ in cuts for part in cut]
        ids = iter(_plain(self.folder, parts))
        return [
            Encoded(_rearranged([next(ids) for _ in cut], is_spm, self.fim_ids))
            for cut, is_spm in cuts
        ]


def _plain(folder: Path, texts: list[str]) -> list[list[int]]:
    backend = _backend(folder)
    if backend is None:
        tokenizer = _full_tokenizer(folder)
        return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return [item.ids for item in backend.encode_batch_fast(texts, add_special_tokens=False)]


@lru_cache(maxsize=2)
def _backend(folder: Path) -> Any:
    """The tokenizer's own fast core, read without transformers (which takes seconds to import)."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    backend = Tokenizer.from_file(str(path))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


@lru_cache(maxsize=2)
def _full_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def find_fim_tokens(section: FimSection, tokenizer: Any) -> tuple[int, int, int]:
    """Ids of prefix, suffix and middle.

    Raises:
        DataError: the tokenizer has no such tokens.
    """
    vocabulary = tokenizer.get_vocab()
    for names in (section.tokens,) if section.tokens else _KNOWN_FIM:
        if all(name in vocabulary for name in names):
            prefix, suffix, middle = (int(vocabulary[name]) for name in names)
            return prefix, suffix, middle
    raise DataError(
        "data.fim: the tokenizer has none of the tokens that code models use for fill-in-the-"
        "middle; name three of its unused special tokens in data.fim.tokens, or drop `fim: true`."
        if section.tokens is None
        else f"data.fim.tokens: the tokenizer does not have all of {', '.join(section.tokens)}."
    )


def _fim_cut(document: Document, section: FimSection, seed: int) -> tuple[list[str], bool]:
    """The document in three parts by two random places, or whole; and whether suffix goes first."""
    text = document.text
    if stable_unit("fim", seed, document.id) >= section.rate:
        return [text], False
    places = sorted(
        int(stable_unit("fim", seed, document.id, end) * (len(text) + 1)) for end in "ab"
    )
    is_spm = stable_unit("fim order", seed, document.id) < section.spm_fraction
    return [text[: places[0]], text[places[0] : places[1]], text[places[1] :]], is_spm


def _rearranged(parts: list[list[int]], is_spm: bool, ids: tuple[int, int, int]) -> list[int]:
    """
    >>> _rearranged([[1], [2], [3]], False, (7, 8, 9))
    [7, 1, 8, 3, 9, 2]
    >>> _rearranged([[1], [2], [3]], True, (7, 8, 9))
    [7, 8, 3, 9, 1, 2]
    """
    if len(parts) == 1:
        return parts[0]
    first, middle, last = parts
    prefix_id, suffix_id, middle_id = ids
    if is_spm:
        return [prefix_id, suffix_id, *last, middle_id, *first, *middle]
    return [prefix_id, *first, suffix_id, *last, middle_id, *middle]


def _conversation(tokenizer: Any, messages: list[dict[str, str]]) -> Encoded:
    """A conversation through the chat template; the assistant's words and turn ends are targets."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = messages[:index]
        start = (
            len(tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True))
            if before
            else 0
        )
        stop = len(tokenizer.apply_chat_template(messages[: index + 1], tokenize=False))
        content = message["content"].strip()
        if not (start < stop <= len(text)) or content not in text[start:stop]:
            # Some templates change earlier turns once later ones stand there; find the words.
            start = text.find(content, spans[-1][1] if spans else 0)
            stop = start + len(content)
        if start >= 0:
            spans.append((start, stop))
    result = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    targets = [
        any(start <= begin and begin < stop for start, stop in spans)
        for begin, _ in result["offset_mapping"]
    ]
    return Encoded(list(result["input_ids"]), targets)
