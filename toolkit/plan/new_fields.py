"""Which fields of rows hold the text, the name and the group of a document, seen in the rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import DataError

_TEXT = (
    "text", "content", "body", "document", "article", "raw_content", "contents", "full_text",
    "abstract", "code",
)  # fmt: skip
_MESSAGES = ("messages", "conversation", "conversations", "chat", "turns")
_PAIRS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"),
          ("instruction", "output"), ("instruction", "response"), ("input", "output"))  # fmt: skip
_ID = ("id", "doc_id", "document_id", "uid", "uuid", "pmid", "accession", "url", "key")
_GROUP = re.compile(
    r"(company|firm|issuer|ticker|cik|patient|subject|person|client|customer|account|case|docket"
    r"|matter|court|author|speaker|repo|repository|project|site|hospital|book|thread|group)"
    r"[_ ]?(id|name|number|no|key)?",
    re.IGNORECASE,
)
"""Names of fields whose rows belong together: letters of one client, notes of one patient."""

_FEW_CHARACTERS = 20
"""A field of shorter values, on average, is a name or a label and no text."""

_MOSTLY = 0.8


@dataclass(frozen=True, eq=False)
class RowFields:
    """Settings of a source that is made of rows.

    Attributes:
        settings: keys of the source with their values; those that are the default are left out.
        reasons: why, by key.
    """

    settings: dict[str, str]
    reasons: dict[str, str]

    @property
    def signature(self) -> tuple[tuple[str, str], ...]:
        """Files of one signature can stand in one source."""
        return tuple(sorted(self.settings.items()))


def choose_fields(rows: Sequence[dict[str, object]], where: str) -> RowFields:
    """Look for text, conversation, id and group in the first rows of a file.

    Args:
        rows: at least one.
        where: name of the file, for messages.

    Raises:
        DataError: no field holds text.

    >>> rows = [{"body": "net sales rose by a tenth", "cik": n // 2, "id": n} for n in range(6)]
    >>> choose_fields(rows, "x.jsonl").settings
    {'text_field': 'body', 'id_field': 'id', 'group_field': 'cik'}
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    settings: dict[str, str] = {}
    reasons: dict[str, str] = {}
    messages = next((name for name in names if _is_conversation(name, rows)), None)
    if messages is not None:
        settings["messages_field"] = messages
        reasons["messages_field"] = "conversations: only the assistant's words are learned"
    else:
        _choose_text(rows, names, where, settings, reasons)
    if (id_name := _first(_ID, names, lambda name: _is_unique(name, rows))) is not None:
        settings["id_field"] = id_name
        reasons["id_field"] = "it differs in every row: rows put in between move none"
    group = next((name for name in names if _GROUP.fullmatch(name) and _repeats(name, rows)), None)
    if group is not None and group not in settings.values():
        settings["group_field"] = group
        reasons["group_field"] = f"rows of one {group} belong together"
    return RowFields(settings, reasons)


def _choose_text(
    rows: Sequence[dict[str, object]],
    names: Sequence[str],
    where: str,
    settings: dict[str, str],
    reasons: dict[str, str],
) -> None:
    lengths = {name: _mean_length(name, rows) for name in names}
    texts = {name: length for name, length in lengths.items() if length >= _FEW_CHARACTERS}
    # Only where no field is a text by its name: a dataset of documents may have questions beside.
    pair = next((pair for pair in _PAIRS if all(lengths.get(name) for name in pair)), None)
    text = _first(_TEXT, names, lambda name: name in texts)
    if text is None and pair is not None:
        settings["template"] = f"{{{pair[0]}}}\n\n{{{pair[1]}}}"
        reasons["template"] = f"{pair[0]} and {pair[1]} are read as one text"
        return
    if not texts:
        raise DataError(
            f"{where}: no field of its rows holds text. Fields: {', '.join(map(str, names))}; "
            "conversations are lists of `role` and `content`."
        )
    if text is None:
        text = max(texts, key=lambda name: texts[name])
        reasons["text_field"] = "the field with the longest text"
    if text != "text":
        settings["text_field"] = text
        reasons.setdefault("text_field", "the field that holds the text")
    # Signs that mean something in a template's braces (`str.format`).
    can_be_named = re.fullmatch(r"[^.\[\]{}!:]+", text) is not None
    if lengths.get("title") and text != "title" and can_be_named and not _begins(text, rows):
        # A template names its fields itself.
        settings.pop("text_field", None)
        reasons.pop("text_field", None)
        settings["template"] = f"{{title}}\n\n{{{text}}}"
        reasons["template"] = f"title and {text} are read as one text"


def _begins(text: str, rows: Sequence[dict[str, object]]) -> bool:
    """Whether the text of the first row begins with its title anyway."""
    return str(rows[0].get(text)).lstrip().startswith(str(rows[0].get("title")).strip())


def _first(wanted: Sequence[str], names: Sequence[str], fits: Any) -> str | None:
    """The first wanted name that is there, in any case, and fits."""
    # From the back, so that of two that differ by case alone the first one wins.
    known = {name.lower(): name for name in reversed(names)}
    return next((known[w] for w in wanted if w in known and fits(known[w])), None)


def _mean_length(name: str, rows: Sequence[dict[str, object]]) -> float:
    """Mean length of a field's text; 0 where most rows have none."""
    values = [row.get(name) for row in rows]
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    return sum(map(len, texts)) / len(texts) if len(texts) >= _MOSTLY * len(rows) else 0.0


def _is_conversation(name: str, rows: Sequence[dict[str, object]]) -> bool:
    if name.lower() not in _MESSAGES:
        return False
    value = rows[0].get(name)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value)
    )


def _is_unique(name: str, rows: Sequence[dict[str, object]]) -> bool:
    values = [row.get(name) for row in rows]
    return None not in values and "" not in values and len(set(map(str, values))) == len(rows) > 1


def _repeats(name: str, rows: Sequence[dict[str, object]]) -> bool:
    """Whether several rows share a value, and most rows have one."""
    values = [str(value) for row in rows if (value := row.get(name)) not in (None, "")]
    return len(values) > 0.5 * len(rows) and len(set(values)) < len(values)
