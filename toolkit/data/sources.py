"""Sources to documents, streamed, whatever they come from."""

from __future__ import annotations

import csv
import glob
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.data.artefacts import fetch_artefact, read_members
from toolkit.data.config import SourceSection
from toolkit.data.filing import filing_sections, page_text
from toolkit.errors import DataError, did_you_mean
from toolkit.manifest import hash_file

_FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".csv": "csv",
    ".jsonl": "jsonl",
}


@dataclass(frozen=True)
class Document:
    """One text, and where it comes from.

    Attributes:
        id: unique and stable: source, file and place in it.
        source: name of the source in the recipe.
        group: what must not be divided between training and evaluation (a company, a file).
        text: the text itself.
    """

    id: str
    source: str
    group: str
    text: str


def read_documents(name: str, source: SourceSection) -> Iterator[Document]:
    """Read every document of a source, in a stable order.

    Raises:
        DataError: a file is missing or cannot be read in its format.
    """
    if source.hub is not None:
        yield from _hub_documents(name, source)
        return
    for file_name, data in _files(source):
        yield from _parse(name, source, file_name, data)


def input_hashes(sources: Mapping[str, SourceSection]) -> dict[str, str]:
    """Content hash of every local file; artefacts and hub datasets are pinned in the recipe."""
    return {
        f"{name}/{path.as_posix()}": hash_file(path)
        for name, source in sources.items()
        for path in _local_paths(source)
    }


def _local_paths(source: SourceSection) -> Iterator[Path]:
    for pattern in source.files or ():
        paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
        files = [path for path in paths if path.is_file()]
        if not files:
            raise DataError(f"{pattern}: no such file; paths count from the folder you run in.")
        yield from files


def _files(source: SourceSection) -> Iterator[tuple[str, bytes]]:
    if source.artefact is not None:
        yield from read_members(fetch_artefact(source.artefact), source.artefact.member)
    for path in _local_paths(source):
        try:
            yield path.as_posix(), path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _parse(name: str, source: SourceSection, file: str, data: bytes) -> Iterator[Document]:
    kind = source.format
    suffix = PurePosixPath(file).suffix.lower()
    if kind == "auto":
        if suffix not in _FORMATS:
            raise DataError(
                f"{file}: format is unknown by its ending {suffix!r}; set `format` for this source "
                f"or use one of {', '.join(sorted(_FORMATS))}."
            )
        kind = _FORMATS[suffix]  # type: ignore[assignment]
    stem = PurePosixPath(file).stem
    if kind == "filing":
        for number, (_, text) in enumerate(filing_sections(data, file)):
            yield Document(f"{name}/{stem}#{number:04d}", name, stem, text)
    elif kind == "html":
        yield Document(f"{name}/{file}", name, stem, page_text(data, file))
    elif kind == "text":
        yield Document(f"{name}/{file}", name, stem, _decode(data, file))
    else:
        rows = _csv_rows(data, file) if kind == "csv" else _jsonl_rows(data, file)
        for number, row in rows:
            yield _row_document(name, source, f"{stem}#{number:06d}", row, f"{file}:{number}")


def _row_document(
    name: str, source: SourceSection, place: str, row: dict[str, Any], where: str
) -> Document:
    if source.text_field not in row:
        raise DataError(
            f"{where}: has no field {source.text_field!r}"
            f"{did_you_mean(source.text_field, map(str, row))} "
            f"Fields: {', '.join(map(str, row))}; set `text_field`."
        )
    if source.group_field is not None and source.group_field not in row:
        raise DataError(f"{where}: has no field {source.group_field!r}; set `group_field`.")
    group = str(row[source.group_field]) if source.group_field else place
    text = row[source.text_field]
    return Document(f"{name}/{place}", name, group, text if isinstance(text, str) else "")


def _csv_rows(data: bytes, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(_decode(data, file), newline=""))
    try:
        yield from enumerate(reader, start=1)
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: is not valid CSV ({error}).") from error


def _jsonl_rows(data: bytes, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number}: is not valid JSON ({error}).") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: must be an object (got {type(row).__name__}).")
        yield number, row


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: is not UTF-8 text (byte {error.start}); convert it, for instance with iconv."
        ) from error


def _hub_documents(name: str, source: SourceSection) -> Iterator[Document]:
    from datasets import load_dataset  # slow to import, and few recipes need it

    hub = source.hub
    assert hub is not None  # noqa: S101  (the caller checked; this tells the type checker)
    try:
        rows = load_dataset(
            hub.dataset, hub.name, split=hub.split, revision=hub.revision, streaming=True
        )
        for number, row in enumerate(rows):
            yield _row_document(name, source, f"{number:09d}", row, f"{hub.dataset}:{number}")
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{hub.dataset}: cannot be read from the hub ({first}).") from error
