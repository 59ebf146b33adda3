"""File formats: a stream of bytes in, rows or texts out, one at a time."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from toolkit.data.files import ending
from toolkit.data.filing import filing_sections, page_text
from toolkit.data.paged import OLD_FORMATS, PAGED_FORMATS
from toolkit.data.paged_process import read_paged_apart
from toolkit.data.unpacked import read_whole, refuse_bomb
from toolkit.errors import DataError
from toolkit.limits import limit, raise_hint
from toolkit.load_yaml import decode_json

_CODE = ".py .js .ts .java .c .h .cpp .go .rs .rb .php .cs .sh .sql .scala .kt .swift .jl .lua .pl"
FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".tex": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".xml": "pubmed",
    **PAGED_FORMATS,
    **dict.fromkeys(_CODE.split(), "text"),
}
_FRONT_MATTER = re.compile(r"\A---\r?\n.*?\r?\n---\r?\n", re.DOTALL)
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")
SHOWN = 20
"""Messages about damage that are kept of a source."""

NOTE = "note: "
"""Begins the names of counts that are no step of a document's way but the end of a sentence."""


@dataclass
class Faults:
    """What to do with damaged input: stop with its place, or count it.

    Attributes:
        skip: count and go on.
        counts: gains `damaged`.
        shown: the first few messages.
    """

    skip: bool
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def report(self, where: str, what: str, cause: BaseException | None = None) -> None:
        """
        Raises:
            DataError: unless damage is to be skipped.
        """
        if not self.skip:
            raise DataError(
                f"{where}: {what} Mend it, or set `skip_damaged: true` for this source to leave "
                "such out and count them."
            ) from cause
        self.counts["damaged"] += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {what}")


@dataclass(frozen=True)
class DocumentRow:
    """One record of a file: `place` within it, and either fields or a whole text."""

    place: str
    where: str
    fields: dict[str, object] | None = None
    text: str = ""


def format_of(name: str, wanted: str) -> str:
    """
    Raises:
        DataError: the format is not given and the ending does not tell it.
    """
    if wanted != "auto":
        return wanted
    name_ending = ending(name)
    if name_ending in OLD_FORMATS:
        raise DataError(
            f"{name}: {name_ending} is not read; save it as {OLD_FORMATS[name_ending]} "
            f"(LibreOffice: soffice --convert-to {OLD_FORMATS[name_ending][1:]} FILE), or leave it "
            "out with `exclude`."
        )
    if name_ending not in FORMATS:
        raise DataError(
            f"{name}: format is unknown by its ending {name_ending!r}; set `format` for this "
            f"source or use one of {', '.join(sorted(FORMATS))}."
        )
    return FORMATS[name_ending]


def read_rows(stream: IO[bytes], name: str, kind: str, faults: Faults) -> Iterator[DocumentRow]:
    """Records of one file.

    Args:
        stream: its bytes, decompressed.
        name: for messages.
        kind: of `FORMATS`, or `filing`, `front_matter`.
        faults: told of damage.
    """
    if kind == "jsonl":
        yield from _jsonl(stream, name, faults)
    elif kind == "csv":
        yield from _csv(stream, name, faults)
    elif kind == "parquet":
        yield from _parquet(stream, name)
    elif kind == "pubmed":
        yield from _pubmed(stream, name, faults)
    elif kind == "filing":
        for number, (_, text) in enumerate(filing_sections(read_whole(stream, name), name)):
            yield DocumentRow(f"#{number:04d}", name, text=text)
    elif kind in PAGED_FORMATS.values():
        yield from _paged(read_whole(stream, name), name, kind, faults)
    elif kind == "html":
        yield DocumentRow("", name, text=page_text(read_whole(stream, name), name))
    else:
        decoded = _decode(read_whole(stream, name), name, faults)
        if decoded is not None:
            body = _FRONT_MATTER.sub("", decoded, count=1) if kind == "front_matter" else decoded
            yield DocumentRow("", name, text=body)


def _paged(data: bytes, name: str, kind: str, faults: Faults) -> Iterator[DocumentRow]:
    """Pieces of a document, by the page that each begins on."""
    try:
        document = read_paged_apart(data, name, kind)
    except DataError as error:
        faults.report(name, str(error).removeprefix(f"{name}: "), error)
        return
    if not document.pieces:
        what = "holds no text."
        if kind == "pdf":
            what = (
                f"holds {document.num_pages} pages and no text: they are pictures (scanned?); "
                "put text behind them, for instance by ocrmypdf."
            )
        faults.report(name, what)
        return
    if document.empty_pages:
        note = f"{NOTE}pages of {kind} files hold no text (pictures or scans)"
        faults.counts[note] += document.empty_pages
    for piece in document.pieces:
        place = f"#p{piece.page:04d}" if len(document.pieces) > 1 else ""
        yield DocumentRow(place, f"{name}, page {piece.page}", text=piece.text)


def _decode(data: bytes, name: str, faults: Faults) -> str | None:
    try:
        # Some programs put a byte order mark first, which would else be the first character.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        damage_text = (
            f"is not UTF-8 text (byte {error.start}); convert it, for instance with iconv."
        )
        faults.report(name, damage_text, error)
        return None


_EMPTY = "is empty, not even a blank line; perhaps it was never written to its end."


def _jsonl(stream: IO[bytes], name: str, faults: Faults) -> Iterator[DocumentRow]:
    line_number, most_bytes = 0, limit("LINE_BYTES")
    # Bounded reads: a file without line ends would else be taken into memory whole.
    for line_number, line in enumerate(
        iter(partial(stream.readline, most_bytes + 1), b""), start=1
    ):
        if not line.strip():
            continue
        where = f"{name}:{line_number}"
        if len(line) > most_bytes:
            raise DataError(
                f"{where}: is too long for one line; bytes: {raise_hint('LINE_BYTES')}."
            )
        try:
            fields = decode_json(line)
        except ValueError as error:
            faults.report(where, f"is not valid JSON ({error}).", error)
            continue
        except RecursionError as error:
            # A short line has room for thousands of brackets.
            faults.report(where, "is nested too deeply to be read.", error)
            continue
        if not isinstance(fields, dict):
            faults.report(where, f"must be an object (got {type(fields).__name__}).")
            continue
        yield DocumentRow(f"#{line_number:06d}", where, fields)
    if not line_number:
        faults.report(name, _EMPTY)


def _csv(stream: IO[bytes], name: str, faults: Faults) -> Iterator[DocumentRow]:
    most_bytes = limit("LINE_BYTES")
    # The module's own limit, 131,072 characters, is less than many documents have. It holds for the
    # whole process.
    csv.field_size_limit(most_bytes)
    # Bytes that are not UTF-8 stay apart as half characters, so that only their row is damaged.
    text_stream = io.TextIOWrapper(
        stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
    )

    def lines() -> Iterator[str]:
        while line := text_stream.readline(most_bytes + 1):
            if len(line) > most_bytes:
                raise DataError(f"{name}: has a line too long; bytes: {raise_hint('LINE_BYTES')}.")
            yield line

    reader = csv.DictReader(lines(), delimiter="\t" if ending(name) == ".tsv" else ",")
    try:
        if not reader.fieldnames:
            faults.report(name, _EMPTY)
        for row_number, fields in enumerate(reader, start=1):
            where = f"{name}:{reader.line_num}"
            if None in fields or None in fields.values():
                num_fields = len(reader.fieldnames or ())
                faults.report(where, f"has another number of fields than the head ({num_fields}).")
            elif any(not v.isascii() and _NOT_UTF8.search(v) for v in fields.values()):
                faults.report(where, "is not UTF-8 text; convert it, for instance with iconv.")
            else:
                yield DocumentRow(f"#{row_number:06d}", where, dict(fields))
    except csv.Error as error:
        faults.report(f"{name}:{reader.line_num}", f"is not valid CSV ({error}).", error)
    finally:
        # Else the wrapper closes the stream when it is collected, and the stream is the caller's.
        text_stream.detach()


def _parquet(stream: IO[bytes], name: str) -> Iterator[DocumentRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        is_file = stream.seekable()
        # Parquet is read from its end; a stream that cannot step back is read whole.
        file = pq.ParquetFile(stream if is_file else io.BytesIO(read_whole(stream, name)))
        _refuse_parquet_bomb(file, stream, name)
        number = 0
        # A row group can be hundreds of megabytes, and as Python objects several times that.
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield DocumentRow(f"#{number:06d}", f"{name}:{number}", fields)
    # Values that Python has no room for, such as times beyond the year 9999, are of the last two.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own
        # Arrow's errors have many lines; an OSError without a number is damage to all callers.
        raise OSError((str(error) or type(error).__name__).splitlines()[0]) from error


def _refuse_parquet_bomb(file: Any, stream: IO[bytes], name: str) -> None:
    """Columns of one value take no bytes, whatever number of rows they claim."""
    if not stream.seekable():
        return
    packed_bytes = stream.seek(0, io.SEEK_END)
    metadata = file.metadata
    group_sizes = (metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    refuse_bomb(name, packed_bytes, max(sum(group_sizes), metadata.num_rows))


def _pubmed(stream: IO[bytes], name: str, faults: Faults) -> Iterator[DocumentRow]:
    """Articles of a PubMed file: title and abstract, with the labels of its parts."""
    from lxml import etree

    # A stranger's XML: entities can read local files, and a DTD can be asked for over the network.
    parser_settings = {"resolve_entities": False, "no_network": True, "load_dtd": False}
    articles = etree.iterparse(stream, tag="PubmedArticle", huge_tree=True, **parser_settings)
    article_number = 0
    try:
        for article_number, (_, article) in enumerate(articles, start=1):
            fields = _article(article)
            article.clear()
            while article.getprevious() is not None:  # lxml keeps what came before otherwise
                del article.getparent()[0]
            pmid = fields["pmid"] or f"#{article_number:06d}"
            yield DocumentRow(f"#{pmid}", f"{name}: article {pmid}", fields)
        if not article_number:
            faults.report(name, "holds no PubmedArticle; only PubMed's XML can be read.")
    except etree.XMLSyntaxError as error:
        faults.report(
            f"{name}: after article {article_number}", f"is not valid XML ({error}).", error
        )


def _article(article: Any) -> dict[str, object]:
    title_element = article.find(".//ArticleTitle")
    abstract_parts = []
    for abstract_part in article.iterfind(".//Abstract/AbstractText"):
        text = "".join(abstract_part.itertext()).strip()
        label = abstract_part.get("Label")
        if text:
            abstract_parts.append(f"{label.capitalize()}: {text}" if label else text)
    title_text = "".join(title_element.itertext()).strip() if title_element is not None else ""
    abstract = "\n".join(abstract_parts)
    return {
        "pmid": article.findtext(".//PMID") or "",
        "title": title_text,
        "abstract": abstract,
        # A title alone is no text: the empty one is left out as too short.
        "text": f"{title_text}\n\n{abstract}" if abstract else "",
    }
