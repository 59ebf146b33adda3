"""Where facts stand in a document: paragraphs below their headings, sentences, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CELLS = " | "
"""What stands between the cells of a row, as the readers of pages and filings write it."""

_NO_END = frozenset(
    [
        "inc.",
        "corp.",
        "co.",
        "ltd.",
        "no.",
        "nos.",
        "mr.",
        "mrs.",
        "ms.",
        "dr.",
        "st.",
        "vs.",
        "e.g.",
        "i.e.",
        "approx.",
        "fig.",
        "sec.",
        "art.",
        "u.s.",
        "u.k.",
        "jr.",
        "sr.",
        "al.",
        "cf.",
        "est.",
        "dept.",
        "vol.",
        "ed.",
        "p.",
        "pp.",
    ]
)
_SENTENCE_END = re.compile(r"[.!?][\"”’)]*\s+(?=[\"“(]?[A-Z0-9])")
_YEAR = re.compile(r"(?:19|20)\d\d")
_VALUE = re.compile(r"\(?-?[$€£]?\s?\d[\d,]*(?:\.\d+)?\)?\s?%?")
_FOOTNOTE = re.compile(r"\s*\((?:[a-z]|\d)\)$")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, and the heading that it stands below.

    Attributes:
        text: without line breaks.
        heading: the nearest above it, empty where there is none.
        start: its place in the document's text.
    """

    text: str
    heading: str
    start: int


@dataclass(frozen=True)
class NamedTable:
    """A table whose columns have names.

    Attributes:
        title: what its first cell says, or the heading that it stands below.
        heading: the nearest above it, empty where there is none.
        unit: such as `millions`, empty where none is said.
        columns: names of the columns beside the first.
        rows: label of each row and its cells, as many as columns.
        start: its place in the document's text.
    """

    title: str
    heading: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    start: int


def split_blocks(text: str) -> tuple[list[Paragraph], list[NamedTable]]:
    """Paragraphs and tables of a document.

    >>> paragraphs, tables = split_blocks("Sales\\n\\nSales rose by a tenth in the year.")
    >>> paragraphs
    [Paragraph(text='Sales rose by a tenth in the year.', heading='Sales', start=7)]
    """
    paragraphs: list[Paragraph] = []
    tables: list[NamedTable] = []
    rows: list[str] = []
    heading, start, rows_start = "", 0, 0
    # The empty line at the end closes a table that stands last.
    for line in [*text.split("\n"), ""]:
        if CELLS in line:
            rows_start = rows_start if rows else start
            rows.append(line)
        else:
            if rows:
                tables += _read_table(rows, heading, rows_start)
                rows = []
            if is_heading(line):
                heading = line.strip()
            elif line.strip():
                offset = len(line) - len(line.lstrip())
                paragraphs.append(Paragraph(line.strip(), heading, start + offset))
        start += len(line) + 1
    return paragraphs, tables


def is_heading(line: str) -> bool:
    """Whether a line is a title: short, begun by a capital or a number, without a full stop.

    >>> is_heading("10. Inventory"), is_heading("Inventory is stated at cost."), is_heading("")
    (True, False, False)
    """
    line = line.strip()
    begins = line[:1].isupper() or line[:1].isdigit()
    return begins and len(line.split()) <= 12 and line[-1] not in ".;:,!?"


def split_sentences(text: str) -> Iterator[str]:
    """Sentences of a paragraph, English abbreviations not taken for ends.

    >>> list(split_sentences("Sales in the U.S. rose. Costs of Apex Inc. fell by 2.5 percent."))
    ['Sales in the U.S. rose.', 'Costs of Apex Inc. fell by 2.5 percent.']
    """
    start = 0
    for match in _SENTENCE_END.finditer(text):
        last_word = text[start : match.start() + 1].split()[-1:] or [""]
        word = last_word[0].lower().lstrip('("“')
        # A single letter before the stop is an initial.
        if word in _NO_END or (len(word) == 2 and word[0].isalpha()):
            continue
        yield text[start : match.end()].strip()
        start = match.end()
    if text[start:].strip():
        yield text[start:].strip()


def _read_table(lines: Sequence[str], heading: str, start: int) -> Iterator[NamedTable]:
    """The tables of a run of rows: each begins where a row has no value and names columns."""
    table: NamedTable | None = None
    rows: list[tuple[str, tuple[str, ...]]] = []
    for line in lines:
        # Cut at the sign alone: an empty cell at a row's end has lost the space behind it.
        cells = [_FOOTNOTE.sub("", cell.strip()) for cell in line.split(CELLS.strip())]
        label, values = cells[0], tuple(cells[1:])
        # Columns that share a name could not be told apart in a sentence.
        if values and all(map(_names_column, values)) and len(set(values)) == len(values):
            if table is not None and rows:
                yield _with_rows(table, rows)
            title, unit = _title_and_unit(label)
            table, rows = NamedTable(title or heading, heading, unit, values, (), start), []
        elif table is not None and len(values) == len(table.columns) and label:
            rows.append((label, values))
    if table is not None and rows:
        yield _with_rows(table, rows)


def _with_rows(table: NamedTable, rows: Sequence[tuple[str, tuple[str, ...]]]) -> NamedTable:
    labels = [label for label, _ in rows]
    # A label that returns says nothing without the one above it.
    alone = tuple(row for row in rows if labels.count(row[0]) == 1)
    return NamedTable(table.title, table.heading, table.unit, table.columns, alone, table.start)


def _names_column(cell: str) -> bool:
    if not cell:
        return False
    return bool(_YEAR.fullmatch(cell)) or (not is_value(cell) and any(map(str.isalpha, cell)))


def is_value(cell: str) -> bool:
    """Whether a cell holds a number, in whatever dress.

    >>> [is_value(cell) for cell in ("$4,611", "(697)", "12.5%", "Level 1", "—")]
    [True, True, True, False, False]
    """
    return bool(_VALUE.fullmatch(cell))


def _title_and_unit(label: str) -> tuple[str, str]:
    """
    >>> _title_and_unit("Net Sales (millions)")
    ('Net Sales', 'millions')
    """
    match = re.search(r"\((?:in |dollars in )?([a-z][a-z ]*?)(?:,[^)]*)?\)", label)
    if match is None:
        return label, ""
    return (label[: match.start()] + label[match.end() :]).strip(" ,"), match.group(1)
