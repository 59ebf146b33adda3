"""Inline-XBRL filings (10-K HTML) to clean text, in sections.

An inline-XBRL filing is a web page in which every figure is tagged. The text is there, but between
hidden headers, running heads, page numbers and tables made of dozens of empty cells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lxml import etree, html

from toolkit.errors import DataError

MIN_SECTION_WORDS = 200
"""A bold heading opens a new section only after this many words, so that no section is a stub."""

_BLOCK_TAGS = {"div", "p", "li", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "center", "body"}
_TABLE_TAGS = {"table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th"}
_SKIPPED_TAGS = {"ix:header", "head", "script", "style", "title"}
_EDGE_BLOCKS = 3  # how deep into a page, from either end, running heads are looked for
_REPEATS = 3  # on how many pages a line must stand to be a running head
_OFTEN = 10  # on how many pages one cell of it must stand, where the rest changes
_MARKER = re.compile(r"^(?:[•·▪◦–—*]|\(?[a-zA-Z0-9]{1,3}[).])$")
_ITEM = re.compile(r"^(?:part\s+[iv]+\b|item\s*\d+[a-c]?\b)", re.IGNORECASE)
_NOTE = re.compile(r"^(?:note\s+\d+\b|\d{1,2}\.\s+[A-Z])", re.IGNORECASE)


@dataclass
class TextBlock:
    """A paragraph, a row of a table, or the end of a page.

    Attributes:
        text: without line breaks.
        bold: all of it is, as headings are.
        is_row: of a table; cells are separated by ` | `.
        ends_page: what comes next stands on another page.
        page: number of the page that it stands on, where there are pages.
    """

    text: str
    bold: bool = False
    is_row: bool = False
    ends_page: bool = False
    page: int = 0


def filing_sections(page: bytes, name: str) -> Iterator[tuple[str, str]]:
    """Cut one filing into sections.

    Args:
        page: the HTML file.
        name: where it comes from, for messages.

    Yields:
        `(heading, text)`: paragraphs separated by blank lines, table rows one a line with cells
        separated by ` | `.

    Raises:
        DataError: no text is left, so this is not a filing.
    """
    yield from _sections(_clean_blocks(page, name))


def page_text(page: bytes, name: str, *, has_pages: bool = True) -> str:
    """The readable text of any HTML page, whole, by the same rules.

    Args:
        page: the HTML file.
        name: where it comes from, for messages.
        has_pages: whether running heads and page numbers are looked for.

    Raises:
        DataError: no text is left.
    """
    return join_blocks(_clean_blocks(page, name, has_pages=has_pages))


def _clean_blocks(page: bytes, name: str, *, has_pages: bool = True) -> list[TextBlock]:
    try:
        # Without `huge_tree` what is nested more than 256 deep is left out without a word.
        root = html.document_fromstring(page, parser=html.HTMLParser(huge_tree=True))
        flat_blocks = list(_blocks(root))
    except (etree.ParserError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as HTML ({error}).") from error
    except RecursionError as error:
        raise DataError(
            f"{name}: its HTML is nested too deeply to be read; convert it to text, for instance "
            "with pandoc."
        ) from error
    text_blocks = join_across_pages(drop_furniture(flat_blocks) if has_pages else flat_blocks)
    if not text_blocks:
        raise DataError(f"{name}: holds no text once hidden parts and page furniture are gone.")
    return text_blocks


def _blocks(root: html.HtmlElement) -> Iterator[TextBlock]:
    """Flatten the tree into paragraphs, table rows and page ends, in reading order."""
    inline_pieces: list[tuple[str, bool]] = []

    def flush() -> Iterator[TextBlock]:
        text = squeeze("".join(piece for piece, _ in inline_pieces))
        if text:
            bold = all(is_bold for piece, is_bold in inline_pieces if piece.strip())
            yield TextBlock(text, bold=bold)
        inline_pieces.clear()

    def walk(element: html.HtmlElement, bold: bool) -> Iterator[TextBlock]:
        tag = element.tag
        if _is_hidden(element):
            return
        style = _style(element)
        # A weight of its own, normal too, overrules what the elements around it say.
        if "font-weight:" in style:
            bold = "font-weight:700" in style or "font-weight:bold" in style
        bold = bold or tag in {"b", "strong"}
        # A row that holds a table is there for the layout: its cells are read like a page.
        if tag == "tr" and element.find(".//table") is None:
            yield from flush()
            if row := _read_row(element):
                yield TextBlock(row, is_row=True)
        else:
            is_block = tag in _BLOCK_TAGS or tag in _TABLE_TAGS
            if is_block:
                yield from flush()
            if tag == "br":
                inline_pieces.append((" ", bold))
            inline_pieces.append((element.text or "", bold))
            for child in element:
                yield from walk(child, bold)
                inline_pieces.append((child.tail or "", bold))
            if is_block:
                yield from flush()
        if "page-break-after:always" in style or "break-after:page" in style:
            yield from flush()
            yield TextBlock("", ends_page=True)

    yield from walk(root, False)
    yield from flush()


def _style(element: html.HtmlElement) -> str:
    return (element.get("style") or "").replace(" ", "").lower()


def _is_hidden(element: html.HtmlElement) -> bool:
    """Whether nothing of it is shown; comments have no string for a tag."""
    if not isinstance(element.tag, str) or element.tag in _SKIPPED_TAGS:
        return True
    return "display:none" in _style(element)


def _read_row(row: html.HtmlElement) -> str:
    cells = [squeeze(_visible_text(cell)) for cell in row if cell.tag in {"td", "th"}]
    return _row_text([cell for cell in cells if cell])


def _visible_text(element: html.HtmlElement) -> str:
    if _is_hidden(element):
        return ""
    if element.tag == "br":
        return " "
    inner_text = "".join(_visible_text(child) + (child.tail or "") for child in element)
    block_gap = " " if element.tag in _BLOCK_TAGS else ""
    return block_gap + (element.text or "") + inner_text + block_gap


def _row_text(cells: list[str]) -> str:
    """Join the cells of a row; currency signs, brackets and percent signs rejoin their figures.

    >>> _row_text(["Net sales", "$", "106,566", "(", "0.8", ")%"])
    'Net sales | $106,566 | (0.8)%'
    >>> _row_text(["•", "Competition is intense."])
    '• Competition is intense.'
    """
    joined_cells: list[str] = []
    opening_signs = ""
    for cell in cells:
        if cell in {"$", "€", "£", "¥", "(", "$("}:
            opening_signs += cell
        elif joined_cells and re.fullmatch(r"[)%]+|pts?\.?", cell):
            joined_cells[-1] += cell
        else:
            joined_cells.append(opening_signs + cell)
            opening_signs = ""
    if opening_signs:
        joined_cells.append(opening_signs)
    if len(joined_cells) == 2 and _MARKER.match(joined_cells[0]):
        return " ".join(joined_cells)
    return " | ".join(joined_cells)


def squeeze(text: str) -> str:
    return re.sub(r"[\s\u00a0\u200b]+", " ", text).strip()


def drop_furniture(blocks: list[TextBlock]) -> list[TextBlock]:
    """Leave out running heads and page numbers: short lines that return at the edges of pages."""
    pages: list[list[TextBlock]] = [[]]
    for block in blocks:
        pages[-1].append(block)
        if block.ends_page:
            pages.append([])
    # Digits are one sign in a shape, so that "Page 7" and "Page 8" are one line that returns.
    shape_counts: Counter[str] = Counter()
    for page in pages:
        shape_counts.update({part for block in _edges(page) for part in _parts(block)})
    kept_blocks: list[TextBlock] = []
    for page in pages:
        # By identity: a line that reads the same in the middle of a page stays.
        furniture_ids = {
            id(block)
            for block in _edges(page)
            if block.text.isdigit()
            or shape_counts[_shape(block.text)] >= _REPEATS
            # "LEGAL PROCEEDINGS | Table of Contents": the chapter changes, the link stays
            or any(shape_counts[part] >= _OFTEN for part in _parts(block))
        }
        kept_blocks += [block for block in page if id(block) not in furniture_ids]
    return kept_blocks


def _edges(page: list[TextBlock]) -> list[TextBlock]:
    text_blocks = [block for block in page if block.text]
    # The foot is taken from what the head left, so that a short page has no line twice.
    edge_blocks = text_blocks[:_EDGE_BLOCKS] + text_blocks[_EDGE_BLOCKS:][-_EDGE_BLOCKS:]
    # Running heads are short; a whole paragraph that returns at a page's edge is text.
    return [block for block in edge_blocks if len(block.text) <= 120]


def _parts(block: TextBlock) -> set[str]:
    """The whole line and, of a row, each cell with words in it."""
    cells = block.text.split(" | ") if block.is_row else []
    return {_shape(block.text)} | {_shape(cell) for cell in cells if len(cell) >= 8}


def _shape(text: str) -> str:
    return re.sub(r"\d+", "#", text.lower())


def join_across_pages(blocks: list[TextBlock]) -> list[TextBlock]:
    """Give back to a sentence what a page end cut off."""
    joined_blocks: list[TextBlock] = []
    after_page_end = False
    for block in blocks:
        if block.ends_page:
            after_page_end = True
            continue
        last_block = joined_blocks[-1] if joined_blocks else None
        if (
            after_page_end
            and last_block is not None
            and not last_block.is_row
            and not block.is_row
            and not last_block.text.endswith((".", "!", "?", ":", ";", "”", ")"))
            and block.text[:1].islower()
        ):
            last_block.text += " " + block.text
        else:
            joined_blocks.append(block)
        after_page_end = False
    return joined_blocks


def _sections(blocks: list[TextBlock]) -> Iterator[tuple[str, str]]:
    heading, section_blocks, num_words = "Front matter", list[TextBlock](), 0
    for block in blocks:
        is_short = not block.is_row and len(block.text) <= 150
        opens_section = is_short and (
            (bool(_ITEM.match(block.text)) and (block.bold or num_words >= MIN_SECTION_WORDS))
            or (block.bold and bool(_NOTE.match(block.text)))
            or (block.bold and num_words >= MIN_SECTION_WORDS and not block.text.endswith("."))
        )
        if opens_section and num_words > 0:
            # A heading that follows a heading belongs to the same section.
            if num_words >= MIN_SECTION_WORDS // 4:
                yield heading, join_blocks(section_blocks)
                heading, section_blocks, num_words = block.text, [], 0
        elif opens_section:
            heading = block.text
        section_blocks.append(block)
        num_words += len(block.text.split())
    if section_blocks:
        yield heading, join_blocks(section_blocks)


def join_blocks(blocks: list[TextBlock]) -> str:
    """Paragraphs apart by a blank line, rows of one table by a line break."""
    joined_text = ""
    for index, block in enumerate(blocks):
        if index:
            joined_text += "\n" if block.is_row and blocks[index - 1].is_row else "\n\n"
        joined_text += block.text
    return joined_text
