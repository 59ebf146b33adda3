"""Sources to documents, streamed, whatever they come from."""

from __future__ import annotations

import io
import json
import lzma
import math
import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from toolkit.data.artifacts import ARCHIVE_ERRORS
from toolkit.data.config import SourceSection
from toolkit.data.edgar import fetch_filing, find_filings, is_page, read_main_document
from toolkit.data.files import input_hashes, source_files
from toolkit.data.formats import NOTE, DocumentRow, Faults, format_of, read_rows
from toolkit.errors import DataError, sentence_end
from toolkit.library_errors import first_line

__all__ = ["Document", "input_hashes", "read_documents"]


@dataclass(frozen=True)
class Document:
    """One text, and where it comes from.

    Attributes:
        id: unique and stable: source, file and place in it.
        source: name of the source in the recipe.
        group: what must not be divided between training and evaluation (a company, a file).
        text: the text itself.
        messages: a conversation as JSON, in place of plain text; `text` then holds its words.
    """

    id: str
    source: str
    group: str
    text: str
    messages: str | None = None


def read_documents(
    name: str, source: SourceSection, faults: Faults | None = None
) -> Iterator[Document]:
    """Read every document of a source, in a stable order.

    Args:
        name: of the source.
        source: its section.
        faults: told of damaged input; by default the section decides, and nobody hears of it.

    Raises:
        DataError: a file is missing or cannot be read in its format.
    """
    faults = faults or Faults(source.skip_damaged)
    read = _hub_documents if source.hub else _filing_documents if source.edgar else _all
    documents = read(name, source, faults)
    for number, document in enumerate(documents, start=1):
        yield document
        # Behind the yield: to ask for one more document could open, or fetch, the next file.
        if number == source.max_documents:
            return


def _all(name: str, source: SourceSection, faults: Faults) -> Iterator[Document]:
    for file in source_files(source):
        num_documents = 0
        try:
            with file.open() as stream:
                file_format = format_of(file.name, source.format)
                for row in read_rows(stream, file.name, file_format, faults):
                    document = _document(name, source, file.key, row, faults)
                    if document is not None:
                        num_documents += 1
                        yield document
        except ARCHIVE_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                # The system's own (a disk, a connection, a right that is missing): not damage.
                raise DataError(
                    f"{file.name}: reading fails after {num_documents} documents "
                    f"({error.strerror}); run again when it can be read."
                ) from error
            damage_text = f"is damaged: reading fails after {num_documents} documents ({error})."
            faults.report(file.name, damage_text, error)


def _document(
    name: str, source: SourceSection, key: str, row: DocumentRow, faults: Faults
) -> Document | None:
    """The document of a row, or None where it is damaged."""
    try:
        return _read_document(name, source, key, row, faults)
    except _MissingFieldError as error:
        faults.report(row.where, str(error))
        return None


def _read_document(
    name: str, source: SourceSection, key: str, row: DocumentRow, faults: Faults
) -> Document | None:
    # The id decides split and order, so it is made of what stays when files are added: source, the
    # file's key, and the place in the file.
    document_id, group = f"{name}/{key}{row.place}", key
    group_folder = (
        "/".join(key.split("/")[:-1][: source.group_folders]) if source.group_folders else ""
    )
    if row.fields is None:
        return Document(document_id, name, group_folder or group, row.text)
    # Pieces of one file belong together; rows of a table stand for themselves.
    group = group_folder or f"{key}{row.place}"
    if source.id_field is not None:
        value = _field(row, source.id_field, "id_field")
        if _is_missing(value):
            faults.counts[f"{NOTE}rows have no {source.id_field!r}; their place names them"] += 1
        else:
            document_id = f"{name}/{_name(value)}"
    if source.group_field is not None:
        value = _field(row, source.group_field, "group_field")
        if _is_missing(value):
            faults.counts[f"{NOTE}rows have no {source.group_field!r}; each stands for itself"] += 1
        else:
            group = _name(value)
    if source.messages_field is not None:
        return _conversation(document_id, name, group, row, source.messages_field, faults)
    template_parts = [("", source.text_field)]
    if source.template is not None:
        parsed_template = string.Formatter().parse(source.template)
        template_parts = [(literal, field or "") for literal, field, _, _ in parsed_template]
    setting_name = "text_field" if source.template is None else "template"
    text = ""
    for literal, field in template_parts:
        value = _text(_field(row, field, setting_name)) if field else ""
        if value is None:
            value_type = type((row.fields or {})[field]).__name__
            damage_text = f"field {field!r} holds a {value_type}, not text."
            if value_type == "bytes":
                damage_text = f"field {field!r} holds bytes that are not UTF-8 text."
            faults.report(row.where, damage_text)
            return None
        text += literal + value
    return Document(document_id, name, group, text)


def _conversation(
    identity: str, name: str, group: str, row: DocumentRow, field: str, faults: Faults
) -> Document | None:
    messages = _field(row, field, "messages_field")
    is_conversation = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not is_conversation or not any(m["role"] == "assistant" for m in messages):
        damage_text = (
            f"{field} must be a list of role and content with an assistant's answer in it."
        )
        faults.report(row.where, damage_text)
        return None
    # The words alone serve cleaning and duplicates; the template is given the messages as they are.
    text = "\n".join(message["content"] for message in messages)
    return Document(identity, name, group, text, json.dumps(messages, ensure_ascii=False))


_PLAIN = (str, bool, int, float, Decimal, date, time, timedelta, UUID)
"""Types whose `str` is what a reader would write; a datetime is a date."""


def _text(value: Any) -> str | None:
    """A field's value as text, empty where it is missing; None where it is no text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            return None
    return str(value) if isinstance(value, _PLAIN) else None


def _is_missing(value: Any) -> bool:
    """Null, not a number, or the empty text that CSV has in its place."""
    return _text(value) == "" or (isinstance(value, str) and not value.strip())


def _name(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "replace")
    return str(value).encode("utf-8", "replace").decode()  # JSON can hold half a character


class _MissingFieldError(Exception):
    """A row lacks a field; says what to do."""


def _field(row: DocumentRow, field: str, setting: str) -> Any:
    fields = row.fields or {}
    if field not in fields:
        known_fields = ", ".join(map(str, fields))
        raise _MissingFieldError(
            f"has no field {field!r}{sentence_end(field, map(str, fields))} "
            f"Fields: {known_fields}; set `{setting}`."
        )
    return fields[field]


def _filing_documents(name: str, source: SourceSection, faults: Faults) -> Iterator[Document]:
    """Sections of filings, each filing fetched when it is its turn; groups are companies."""
    assert source.edgar is not None  # noqa: S101  (the caller checked; this tells the type checker)
    for filing in find_filings(source.edgar):
        fetched = fetch_filing(filing, source.edgar)
        try:
            data = read_main_document(fetched)
            kind = "filing" if is_page(data) else "text"
            for row in read_rows(io.BytesIO(data), filing.key, kind, faults):
                yield Document(f"{name}/{filing.key}{row.place}", name, filing.company, row.text)
        except DataError as error:
            if not faults.skip:
                raise
            faults.report(filing.key, str(error).removeprefix(f"{filing.key}: "), error)


def _hub_documents(name: str, source: SourceSection, faults: Faults) -> Iterator[Document]:
    from datasets import load_dataset  # slow to import, and few recipes need it

    hub = source.hub
    assert hub is not None  # noqa: S101  (the caller checked; this tells the type checker)
    try:
        rows = load_dataset(
            hub.dataset, hub.name, split=hub.split, revision=hub.revision, streaming=True
        )
        if rows.features:
            rows = rows.decode(False)  # pictures and sounds beside the text are not looked at
        num_shards = max(1, rows.num_shards)
    except (OSError, ValueError) as error:
        raise _unreachable(hub.dataset, error) from error
    num_rows = 0
    for shard_number in range(num_shards):
        # File by file: `datasets` cannot go on within one after an error, but with the next.
        rows_before = num_rows
        try:
            for fields in rows.shard(num_shards, shard_number):
                row = DocumentRow(f"{num_rows:09d}", f"{hub.dataset}:{num_rows}", fields)
                num_rows += 1
                document = _document(name, source, "", row, faults)
                if document is not None:
                    yield document
        except OSError as error:
            raise _unreachable(hub.dataset, error) from error
        except (ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
            place = f"{hub.dataset}: file {shard_number + 1} of {num_shards}"
            num_read = num_rows - rows_before
            damage_text = f"is damaged: reading fails after {num_read} rows ({first_line(error)})."
            faults.report(place, damage_text, error)


def _unreachable(dataset: str, error: Exception) -> DataError:
    return DataError(
        f"{dataset}: cannot be read from the hub ({first_line(error)}). Check name and connection; "
        "if a file of it is damaged, download the good ones and give them as `files`."
    )
