"""PDF, Word, PowerPoint and EPUB files to clean text, each piece with the page that it begins on.

Chosen by trial on real files (dev/LOG.md): pypdfium2 reads a PDF 8 to 31 times faster than pypdf
and pdfminer.six, resolves ligatures, and says which hyphens were put in at the ends of lines. What
the libraries return is lines; paragraphs are put together again here, and running heads and page
numbers are left out as in filings.
"""

from __future__ import annotations

import io
import itertools
import posixpath
import re
import statistics
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from toolkit.data.filing import (
    TextBlock,
    drop_furniture,
    join_across_pages,
    join_blocks,
    page_text,
    squeeze,
)
from toolkit.data.unpacked import refuse_bomb
from toolkit.errors import DataError
from toolkit.library_errors import first_line

PAGED_FORMATS = {".pdf": "pdf", ".docx": "docx", ".pptx": "pptx", ".epub": "epub"}
OLD_FORMATS = {".doc": ".docx", ".ppt": ".pptx", ".rtf": ".docx", ".odt": ".docx", ".odp": ".pptx"}
"""What is not read, and what a word processor saves it as."""

PIECE_WORDS = 1500
"""Documents are cut at the first paragraph that begins after so many words, so that one long book
can be divided between training and evaluation, and every piece knows its page."""

_MIN_PAGE_WORDS = 3
_FULL_LINE = 0.8  # of the usual length; a shorter one ends a paragraph where its sentence ends
_SHORT_LINE = 0.6  # ends one in any case: a heading, a row of a list
# What pdfium gives in place of a hyphen that only a line's end put in, and soft hyphens.
_LINE_HYPHEN = re.compile("[\x02\ufffe\xad](?:\r?\n)?")
_ENDS_SENTENCE = re.compile(r"[.!?:;…][\"'”’)\]]*$")
_BEGINS_ITEM = re.compile(r"(?:[•·▪◦–—*-]|\(?[a-zA-Z0-9]{1,3}[).])\s")


@dataclass(frozen=True)
class PagedPiece:
    """Some pages of a document.

    Attributes:
        page: number of the page, slide or chapter that it begins on, from 1.
        text: paragraphs apart by blank lines, rows of tables one a line.
    """

    page: int
    text: str


@dataclass(frozen=True)
class PagedText:
    """A document.

    Attributes:
        pieces: in their order; empty where the document holds no text.
        num_pages: of the file.
        empty_pages: how many hold no text, as scanned ones do.
    """

    pieces: tuple[PagedPiece, ...]
    num_pages: int
    empty_pages: int


def read_paged(data: bytes, name: str, kind: str) -> PagedText:
    """The text of a document.

    Args:
        data: the file.
        name: where it comes from, for messages.
        kind: a value of `PAGED_FORMATS`.

    Raises:
        DataError: the file is encrypted, damaged, or no such document.
        ImportError: the library that reads it is not installed.
    """
    readers = {"pdf": _read_pdf, "docx": _read_docx, "pptx": _read_pptx, "epub": _read_epub}
    if kind != "pdf":
        _check_archive(data, name)
    # All of them first: what is a running head shows over the whole document alone.
    pages = list(readers[kind](data, name))
    blocks: list[TextBlock] = []
    for number, page in enumerate(pages, start=1):
        blocks += [replace(block, page=number) for block in page]
        blocks.append(TextBlock("", ends_page=True))
    empty = sum(sum(len(block.text.split()) for block in page) < _MIN_PAGE_WORDS for page in pages)
    if kind == "pdf":
        kept = join_across_pages(_without_furniture(blocks))
    else:
        # Slides and chapters have titles that are alike, and no running heads; only where pages
        # were laid out does a sentence go on from one to the next.
        kept = [block for block in blocks if not block.ends_page]
    return PagedText(tuple(_pieces(kept)), len(pages), empty)


def _without_furniture(blocks: list[TextBlock]) -> list[TextBlock]:
    """A page that is all furniture, such as a slide of few lines, keeps its words."""
    kept_ids = {id(block) for block in drop_furniture(blocks)}
    pages_with_text = {block.page for block in blocks if block.text and id(block) in kept_ids}
    return [
        block
        for block in blocks
        if id(block) in kept_ids or (block.page not in pages_with_text and not block.text.isdigit())
    ]


def _pieces(blocks: Iterable[TextBlock]) -> Iterator[PagedPiece]:
    held_blocks: list[TextBlock] = []
    word_count = 0
    for block in blocks:
        # A table stays whole.
        if word_count >= PIECE_WORDS and not (block.is_row and held_blocks[-1].is_row):
            yield PagedPiece(held_blocks[0].page, join_blocks(held_blocks))
            held_blocks, word_count = [], 0
        held_blocks.append(block)
        word_count += len(block.text.split())
    if held_blocks:
        yield PagedPiece(held_blocks[0].page, join_blocks(held_blocks))


def _read_pdf(data: bytes, name: str) -> Iterator[list[TextBlock]]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise DataError(
                f"{name}: is encrypted; save a copy without a password, for instance with qpdf."
            ) from error
        raise DataError(f"{name}: is damaged, or no PDF ({error}).") from error
    try:
        for number in range(len(document)):
            try:
                page = document[number]
                text = page.get_textpage().get_text_bounded()
                page.close()
            except pypdfium2.PdfiumError as error:
                raise DataError(
                    f"{name}: page {number + 1} of {len(document)} is damaged ({error})."
                ) from error
            yield [TextBlock(paragraph) for paragraph in join_lines(text)]
    finally:
        document.close()


def join_lines(page: str) -> list[str]:
    """Paragraphs of a page of lines.

    A line ends a paragraph where it is shorter than lines usually are here and its sentence ends,
    where it is much shorter, before an item of a list, and at an empty line.

    >>> join_lines("A sentence that is bro\\x02ken, and\\r\\ngoes on.\\r\\n• An item")
    ['A sentence that is broken, and goes on.', '• An item']
    """
    lines = [line.strip() for line in _LINE_HYPHEN.sub("", page).splitlines()]
    line_lengths = sorted(len(line) for line in lines if line)
    if not line_lengths:
        return []
    # The upper quarter: headings and last lines are short, full lines are alike.
    usual_length = statistics.median(line_lengths[-max(1, len(line_lengths) // 4) :])
    paragraphs: list[str] = []
    is_open = False
    for line in lines:
        if not line:
            is_open = False
            continue
        if is_open and not _BEGINS_ITEM.match(line):
            paragraphs[-1] += " " + line
        else:
            paragraphs.append(line)
        ends_sentence = bool(_ENDS_SENTENCE.search(line))
        is_open = len(line) >= usual_length * (_FULL_LINE if ends_sentence else _SHORT_LINE)
    return [re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs]


def _check_archive(data: bytes, name: str) -> None:
    """Refuse what is no zip archive, what is encrypted, and what unpacks to far more than it is."""
    # The container of OLE: Office puts documents with a password into it, too.
    if data[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise DataError(
            f"{name}: is encrypted, or in the format before Office 2007; save a copy without a "
            "password in today's format."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            zip_entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{name}: is damaged: no zip archive ({error}).") from error
    refuse_bomb(name, len(data), sum(info.file_size for info in zip_entries))
    if any(info.flag_bits & 1 for info in zip_entries):
        raise DataError(f"{name}: is encrypted; save a copy without a password.")


def _read_docx(data: bytes, name: str) -> Iterator[list[TextBlock]]:
    """One page: where pages end is decided when a document is laid out."""
    import docx
    from docx.table import Table

    def blocks(parent: Any) -> Iterator[TextBlock]:
        for item in parent.iter_inner_content():
            if isinstance(item, Table):
                for row in item.rows:
                    # A cell that spans columns is returned once for each.
                    cells = [cell.text.strip() for cell, _ in itertools.groupby(row.cells)]
                    yield TextBlock(squeeze(" | ".join(c for c in cells if c)), is_row=True)
            else:
                heading = item.style is not None and str(item.style.name).startswith("Heading")
                yield TextBlock(squeeze(item.text), bold=heading)

    try:
        document = docx.Document(io.BytesIO(data))
        yield [block for block in blocks(document) if block.text]
    except Exception as error:  # python-docx raises what its parts do
        raise DataError(
            f"{name}: is damaged, or no Word document ({first_line(error)})."
        ) from error


def _read_pptx(data: bytes, name: str) -> Iterator[list[TextBlock]]:
    """A page per slide: its shapes from top to bottom, then the speaker's notes."""
    import pptx
    from pptx.enum.shapes import PP_PLACEHOLDER

    on_every_slide = (PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER, PP_PLACEHOLDER.SLIDE_NUMBER)

    def texts(shapes: Iterable[Any]) -> Iterator[TextBlock]:
        # A slide lists its shapes as they were drawn, the last on top, not as they are read.
        for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
            if shape.is_placeholder and shape.placeholder_format.type in on_every_slide:
                continue
            if shape.has_text_frame:
                for paragraph in shape.text_frame.paragraphs:
                    # The paragraph's own text has its line breaks and fields too, its runs not.
                    yield TextBlock(squeeze(paragraph.text))
            elif getattr(shape, "has_table", False):
                for row in shape.table.rows:
                    cells = [squeeze(cell.text) for cell in row.cells]
                    yield TextBlock(" | ".join(c for c in cells if c), is_row=True)
            elif hasattr(shape, "shapes"):  # a group
                yield from texts(shape.shapes)

    try:
        for slide in pptx.Presentation(io.BytesIO(data)).slides:
            blocks = list(texts(slide.shapes))
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                notes = slide.notes_slide.notes_text_frame.text
                blocks += [TextBlock(squeeze(line)) for line in notes.splitlines()]
            yield [block for block in blocks if block.text]
    except Exception as error:  # python-pptx raises what its parts do
        raise DataError(f"{name}: is damaged, or no presentation ({first_line(error)}).") from error


def _read_epub(data: bytes, name: str) -> Iterator[list[TextBlock]]:
    """A page per chapter, in the order of the book's own list. An EPUB is a zip archive of XHTML;
    the library for it is under the AGPL, so the dozen lines that are needed stand here."""
    from lxml import etree

    # Entities and the network are how a stranger's XML has files read and addresses asked.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            container = etree.fromstring(archive.read("META-INF/container.xml"), parser)
            root_file = container.find(".//{*}rootfile")
            package_path = "" if root_file is None else str(root_file.get("full-path"))
            package = etree.fromstring(archive.read(package_path), parser)
            paths_by_id = {
                str(item.get("id")): str(item.get("href"))
                for item in package.iterfind("{*}manifest/{*}item")
            }
            for item in package.iterfind("{*}spine/{*}itemref"):
                item_path = paths_by_id.get(str(item.get("idref")), "").partition("#")[0]
                folder = PurePosixPath(package_path).parent
                chapter_path = posixpath.normpath((folder / unquote(item_path)).as_posix())
                try:
                    text = page_text(
                        archive.read(chapter_path), f"{name}: {chapter_path}", has_pages=False
                    )
                except DataError:  # a cover without text
                    text = ""
                yield [TextBlock(part) for part in text.split("\n\n") if part]
    except (KeyError, etree.XMLSyntaxError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{name}: is damaged, or no EPUB ({first_line(error)}).") from error
