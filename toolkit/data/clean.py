"""Cleaning: what every text needs, and a count of what was left out and why."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.config import CleaningSection, Pii
from toolkit.data.pii import scrub
from toolkit.data.sources import Document
from toolkit.data.words import (
    I64,
    count_words,
    repeated_fraction,
    run_hashes,
    spread,
    take_rows,
    word_codes,
)

# All but tab and line feed; those that part words or pages become line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\u200b\ufeff]")
_BREAKS = re.compile(r"[\x0b\x0c\x1c-\x1f]")
# JSON can hold half of a pair, which no encoder takes.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACES = re.compile(r"[ \t\u00a0]+")
_UNTIDY = ("\t", "\u00a0", "  ", " \n")
_BLANK_LINES = re.compile(r"\n{3,}")
_RUN_WORDS = 10
"""Length of a run of words for the repetition filter, as in Gopher's longest."""


def clean_text(text: str, collapse_spaces: bool = True) -> str:
    """Normalize Unicode (NFC), line ends, control characters and runs of white space.

    Indentation is kept, since code needs it; runs of spaces within a line stay if so wanted.

    >>> clean_text("Net\\u00a0sales\\r\\n\\r\\n\\r\\n\\r\\nrose  2 %\\x00 ")
    'Net sales\\n\\nrose 2 %'
    """
    # ASCII is in NFC and free of surrogates, and to ask for it costs next to nothing.
    if not text.isascii():
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        text = _SURROGATE.sub("\ufffd", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.replace("\n", "").isprintable():  # cheaper than the search, and mostly so
        text = _CONTROL.sub("", _BREAKS.sub("\n", text))
    if _is_untidy(text):
        text = "\n".join(
            _tidy(line) if collapse_spaces else line.rstrip() for line in text.split("\n")
        )
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n")


def _is_untidy(text: str) -> bool:
    for sign in _UNTIDY:
        if sign in text:
            return True
    return text.endswith(" ")


def _tidy(line: str) -> str:
    body = line.lstrip(" \t\u00a0")
    indent = line[: len(line) - len(body)]
    return (indent + _SPACES.sub(" ", body)).rstrip()


def clean_documents(
    documents: Sequence[Document], section: CleaningSection, counts: Counter[str]
) -> tuple[list[Document], NDArray[np.uint32], I64]:
    """Clean a batch of documents and leave out what is too short, too long or repeats itself.

    Conversations are measured and, but for personal data, not changed: their template gives spaces
    a meaning.

    Args:
        documents: documents as read.
        section: which filters, and how strict.
        counts: gains `read`, `short`, `long` and `repetitive`, each of documents and (`…, bytes`)
            of their size, and `pii: …` for each replacement.

    Returns:
        Documents that stay, and the codes of their words with offsets (`word_codes`).
    """
    remaining: list[Document] = []
    for document in documents:
        _count(counts, "read", document.text)
        text, messages = _clean_fields(document, section, counts)
        # Cheap tests first: the runs of words below cost more than all the rest.
        left_out_reason = _reason_to_leave_out(text, section)
        if left_out_reason is not None:
            _count(counts, left_out_reason, text)
            continue
        # Several times as fast as `replace`.
        remaining.append(Document(document.id, document.source, document.group, text, messages))
    # Runs of words are found for all documents at once, so this filter is the last.
    codes, word_offsets = word_codes([document.text for document in remaining])
    runs, run_offsets = run_hashes(spread(codes), word_offsets, _RUN_WORDS)
    is_repetitive = repeated_fraction(runs, run_offsets) > section.max_repeated_ngram_fraction
    if is_repetitive.any():
        for number in np.flatnonzero(is_repetitive):
            _count(counts, "repetitive", remaining[number].text)
        rest = np.flatnonzero(~is_repetitive)
        remaining = [remaining[number] for number in rest]
        codes, word_offsets = take_rows(codes, word_offsets, rest)
    return remaining, codes, word_offsets


def _clean_fields(
    document: Document, section: CleaningSection, counts: Counter[str]
) -> tuple[str, str | None]:
    """Text and messages of a document as they go on."""
    document_text, messages = document.text, document.messages
    if messages:
        document_text, messages = (
            _SURROGATE.sub("\ufffd", value) for value in (document_text, messages)
        )
    else:
        document_text = clean_text(document_text, section.collapse_spaces)
    if section.pii and messages:
        # String by string: as JSON a line break is two signs, and a number no text.
        scrubbed_messages = _scrub_strings(json.loads(messages), section.pii, counts)
        messages = json.dumps(scrubbed_messages, ensure_ascii=False)
        document_text = "\n".join(message["content"] for message in scrubbed_messages)
    elif section.pii:
        document_text = scrub(document_text, section.pii, counts)
    return document_text, messages


def _scrub_strings(value: Any, kinds: Sequence[Pii], counts: Counter[str]) -> Any:
    """A value of JSON with all its strings scrubbed, those of lists and objects too."""
    if isinstance(value, str):
        return scrub(value, kinds, counts)
    if isinstance(value, list):
        return [_scrub_strings(part, kinds, counts) for part in value]
    if isinstance(value, dict):
        return {key: _scrub_strings(part, kinds, counts) for key, part in value.items()}
    return value


def _reason_to_leave_out(text: str, section: CleaningSection) -> str | None:
    num_words = count_words(text)
    if num_words < section.min_words or not num_words:
        return "short"
    if section.max_words is not None and num_words > section.max_words:
        return "long"
    if _repeated_lines(text) > section.max_repeated_line_fraction:
        return "repetitive"
    return None


def _count(counts: Counter[str], step: str, text: str) -> None:
    counts[step] += 1
    # What was read is counted before cleaning, when half characters may still stand in it.
    counts[f"{step}, bytes"] += len(text.encode("utf-8", "replace"))


def _repeated_lines(text: str) -> float:
    """Share of the characters that stand in lines which came before."""
    text_lines = [line for line in map(str.strip, text.split("\n")) if line]
    if len(text_lines) < 4:  # a title that returns once is no repetition
        return 0.0
    seen_lines: set[str] = set()
    num_repeated = 0
    for line in text_lines:
        if line in seen_lines:
            num_repeated += len(line)
        seen_lines.add(line)
    return num_repeated / max(sum(map(len, text_lines)), 1)
