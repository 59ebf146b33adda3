"""Cleaning: what every text needs, and a count of what was left out and why."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from toolkit.data.sources import Document
from toolkit.manifest import hash_bytes

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b\ufeff]")
_SPACES = re.compile(r"[ \t\u00a0]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean_text(text: str) -> str:
    """Normalise Unicode (NFC), line ends, control characters and runs of white space.

    Indentation is kept, since code needs it.

    >>> clean_text("Net\\u00a0sales\\r\\n\\r\\n\\r\\n\\r\\nrose  2 %\\x00 ")
    'Net sales\\n\\nrose 2 %'
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text)
    lines = []
    for line in text.split("\n"):
        body = line.lstrip(" \t\u00a0")
        indent = line[: len(line) - len(body)]
        lines.append((indent + _SPACES.sub(" ", body)).rstrip())
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


def clean_documents(
    documents: Iterable[Document], *, min_words: int, counts: Counter[str]
) -> Iterator[Document]:
    """Clean each document and leave out short ones and exact repetitions.

    Args:
        documents: as read.
        min_words: shorter ones are left out.
        counts: gains `read`, `short`, `repeated` and `kept`.
    """
    seen: set[str] = set()
    for document in documents:
        counts["read"] += 1
        text = clean_text(document.text)
        if len(text.split()) < min_words:
            counts["short"] += 1
            continue
        digest = hash_bytes(text.encode())
        if digest in seen:
            counts["repeated"] += 1
            continue
        seen.add(digest)
        counts["kept"] += 1
        yield replace(document, text=text)
