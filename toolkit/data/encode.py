"""Texts to token ids: plain, rearranged for fill-in-the-middle, or as conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.backend import Backend
from toolkit.data.config import KNOWN_FIM_TOKENS, FimSection
from toolkit.data.conversations import ConversationEncoder, ConversationError
from toolkit.data.document_tokens import leading_token, text_tokens
from toolkit.data.sources import Document
from toolkit.data.split import stable_unit
from toolkit.errors import DataError
from toolkit.library_errors import reading
from toolkit.stage import load_json
from toolkit.tokenizer_files import check_tokenizer_file, load_tokenizer


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
        start: token that stands before every document anyway; a conversation whose template
            writes it too begins with one.
    """

    folder: Path
    seed: int
    fim: FimSection | None = None
    fim_ids: tuple[int, int, int] | None = None
    start: int | None = None

    def encode_flat(
        self, documents: Sequence[Document]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_] | None]:
        """The tokens of all documents in a row, how many each has, and which of all are targets
        (None: all)."""
        if self.fim is None and not any(document.messages for document in documents):
            backend = _backend(self.folder)
            if backend is not None and backend.cuts_at_spaces:
                # A kind of documents at a time: where all are plain, their words are looked up
                # without a list of tokens for each.
                token_ids, offsets = backend.table.lookup([document.text for document in documents])
                return token_ids, np.diff(offsets), None
        encoded = [_without_start(item, self.start) for item in self.encode(documents)]
        num_tokens = np.array([len(item.tokens) for item in encoded], np.int64)
        token_rows = [np.array(item.tokens, np.int32) for item in encoded]
        tokens = np.concatenate([np.zeros(0, np.int32), *token_rows])
        if all(item.targets is None for item in encoded):
            return tokens, num_tokens, None
        target_rows = [np.array(item.targets, np.bool_) for item in encoded]
        return tokens, num_tokens, np.concatenate(target_rows)

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """Tokens of each document; text that looks like a special token stays text."""
        if any(document.messages for document in documents):
            return [_conversation(self.folder, document) for document in documents]
        if self.fim is None or self.fim_ids is None:
            return [
                Encoded(next_ids) for next_ids in _plain(self.folder, [d.text for d in documents])
            ]
        fim, fim_ids = self.fim, self.fim_ids
        # All parts of all documents are encoded in one call and dealt out again in order.
        document_pieces = [_pieces(d.text, fim.piece_characters) for d in documents]
        cuts_of_documents = [
            [
                _fim_cut(text, f"{d.id}#{n}" if n else d.id, fim, self.seed)
                for n, text in enumerate(parts)
            ]
            for d, parts in zip(documents, document_pieces, strict=True)
        ]
        next_ids = iter(
            _plain(
                self.folder,
                [
                    cut_part
                    for document_cuts in cuts_of_documents
                    for cut, _ in document_cuts
                    for cut_part in cut
                ],
            )
        )
        return [
            Encoded(
                [
                    token
                    for cut, is_spm in document_cuts
                    for token in _rearranged([next(next_ids) for _ in cut], is_spm, fim_ids)
                ]
            )
            for document_cuts in cuts_of_documents
        ]


def _without_start(item: Encoded, start: int | None) -> Encoded:
    if start is None or item.targets is None or item.tokens[:1] != [start]:
        return item
    return Encoded(item.tokens[1:], item.targets[1:])


def _pieces(text: str, characters: int | None) -> list[str]:
    """
    >>> _pieces("one\\ntwo\\nthree\\n", 5)
    ['one\\ntwo\\n', 'three\\n']
    """
    if characters is None:
        return [text]
    pieces = [""]
    # It cuts at form feeds and the like, too, and keeps them: pieces together are the text.
    for line in text.splitlines(keepends=True):
        if len(pieces[-1]) >= characters:
            pieces.append("")
        pieces[-1] += line
    return pieces


def _plain(folder: Path, texts: list[str]) -> list[list[int]]:
    backend = _backend(folder)
    if backend is None:
        tokenizer = _full_tokenizer(folder)
        return [text_tokens(tokenizer, text) for text in texts]
    if not backend.cuts_at_spaces:
        return backend.encode(texts)
    token_ids, offsets = backend.table.lookup(texts)
    flat_tokens, text_edges = token_ids.tolist(), offsets.tolist()
    return [flat_tokens[start:stop] for start, stop in pairwise(text_edges)]


def _backend(folder: Path) -> Backend | None:
    return _backend_at(folder.absolute())


@lru_cache(maxsize=2)
def _backend_at(folder: Path) -> Backend | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    check_tokenizer_file(path, DataError)
    with reading(path, DataError, "cannot be read as a tokenizer", "fetch the model's files again"):
        return Backend(path)


def open_tokenizer(folder: Path) -> None:
    """Load a tokenizer's core before it is needed."""
    _backend(folder)


def _full_tokenizer(folder: Path) -> Any:
    return _full_tokenizer_at(folder.absolute())


@lru_cache(maxsize=2)
def _full_tokenizer_at(folder: Path) -> Any:
    return load_tokenizer(folder, DataError)


class TextTokenizer:
    """What the stage needs of a tokenizer: its vocabulary, and where in a text tokens end.

    Args:
        folder: of the model or tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._core = _backend(folder)
        if self._core is not None:
            self.vocabulary = self._core.vocabulary()
        else:
            self.vocabulary = dict(_full_tokenizer(folder).get_vocab())

    def __len__(self) -> int:
        # Ids may have gaps, so the largest one counts.
        return max(self.vocabulary.values(), default=-1) + 1

    @property
    def end_of_sequence(self) -> str | None:
        """The token that the tokenizer's own settings name."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            settings_file = self._folder / name
            end_token = (
                load_json(settings_file).get("eos_token") if settings_file.is_file() else None
            )
            if end_token is not None:
                return str(end_token["content"] if isinstance(end_token, dict) else end_token)
        return None

    @property
    def leading_token(self) -> int | None:
        """The token that stands before every text (BOS), if the tokenizer puts one there.

        transformers has the last word, which takes seconds to import: it is asked only where the
        tokenizer's files leave something to decide.
        """
        if self._core is not None and self._core.frame("a") == self._core.encode(["a"])[0]:
            config_file = self._folder / "tokenizer_config.json"
            tokenizer_settings = load_json(config_file) if config_file.is_file() else {}
            may_frame = not self._core.has_frame and tokenizer_settings.get("bos_token") is not None
            if not may_frame and not tokenizer_settings.get("add_bos_token"):
                return None
        return leading_token(_full_tokenizer(self._folder))

    def start_or(self, separator: int) -> int:
        """The token that begins documents: BOS where there is one, else the separator."""
        leading = self.leading_token
        return separator if leading is None else leading

    def counts(self, texts: list[str]) -> list[int]:
        """How many tokens each text has; many at once are quicker than one by one."""
        return [len(ids) for ids in _plain(self._folder, texts)]

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and the characters `[start, stop)` that each stands for."""
        if self._core is not None:
            return self._core.encode_with_offsets(text)
        tokenizer = _full_tokenizer(self._folder)
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def find_separator(name: str | None, tokenizer: TextTokenizer) -> int:
    """Id of the token between documents.

    Args:
        name: the recipe's, or None for the tokenizer's end of sequence.
        tokenizer: to look it up in.

    Raises:
        DataError: the tokenizer does not have it.
    """
    end_token = tokenizer.end_of_sequence
    if name is None and end_token is None:
        raise DataError(
            "data.end_of_document: the tokenizer has no end-of-sequence token; name the token "
            "that should stand between documents."
        )
    separator_id = tokenizer.vocabulary.get(str(name or end_token))
    if separator_id is None:
        raise DataError(
            f"data.end_of_document: the tokenizer has no token {name or end_token!r}; "
            f"its end-of-sequence token is {end_token!r}."
        )
    return separator_id


def find_fim_tokens(section: FimSection, vocabulary: dict[str, int]) -> tuple[int, int, int]:
    """Ids of prefix, suffix and middle.

    Raises:
        DataError: the tokenizer has no such tokens.
    """
    for names in (section.tokens,) if section.tokens else KNOWN_FIM_TOKENS:
        if all(name in vocabulary for name in names):
            prefix, suffix, middle = (int(vocabulary[name]) for name in names)
            return prefix, suffix, middle
    raise DataError(
        "data.fim: the tokenizer has none of the tokens that code models use for fill-in-the-"
        "middle; name three of its unused special tokens in data.fim.tokens, or drop `fim: true`."
        if section.tokens is None
        else f"data.fim.tokens: the tokenizer does not have all of {', '.join(section.tokens)}."
    )


def _fim_cut(text: str, name: str, section: FimSection, seed: int) -> tuple[list[str], bool]:
    """A text in three parts by two random places, or whole; and whether suffix goes first."""
    if stable_unit("fim", seed, name) >= section.rate:
        return [text], False
    # One place more than there are characters: each of the three parts may be empty.
    cut_places = sorted(int(stable_unit("fim", seed, name, end) * (len(text) + 1)) for end in "ab")
    is_spm = stable_unit("fim order", seed, name) < section.spm_rate
    return [
        text[: cut_places[0]],
        text[cut_places[0] : cut_places[1]],
        text[cut_places[1] :],
    ], is_spm


def _rearranged(parts: list[list[int]], is_spm: bool, ids: tuple[int, int, int]) -> list[int]:
    """
    >>> _rearranged([[1], [2], [3]], False, (7, 8, 9))
    [7, 1, 8, 3, 9, 2]
    >>> _rearranged([[1], [2], [3]], True, (7, 8, 9))
    [7, 8, 3, 9, 1, 2]
    """
    if len(parts) == 1:
        return parts[0]
    prefix_part, middle_part, suffix_part = parts
    prefix_id, suffix_id, middle_id = ids
    if is_spm:
        # The prefix stands behind the token of the middle, so that both read on as one text.
        return [prefix_id, suffix_id, *suffix_part, middle_id, *prefix_part, *middle_part]
    return [prefix_id, *prefix_part, suffix_id, *suffix_part, middle_id, *middle_part]


def open_conversations(folder: Path) -> ConversationEncoder:
    """The chat template of a model's tokenizer, ready to encode.

    Raises:
        DataError: there is no tokenizer, or it has no chat template.
    """
    return _conversations_at(folder.absolute())


@lru_cache(maxsize=2)
def _conversations_at(folder: Path) -> ConversationEncoder:
    return ConversationEncoder(_full_tokenizer(folder), folder)


def _conversation(folder: Path, document: Document) -> Encoded:
    messages = json.loads(document.messages or "[]")
    try:
        learned_conversation = open_conversations(folder).encode(messages)
    except ConversationError as error:
        raise DataError(f"{document.id}: {error}") from error
    return Encoded(learned_conversation.tokens, learned_conversation.is_target)
