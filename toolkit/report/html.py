"""The parts of a page: one file, nothing from the network, in the reader's light or dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from toolkit.stage import write_atomically


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        words: what is shown.
        value: what it is sorted by; else the words.
        detail: shown smaller, on a line of its own.
    """

    words: str
    value: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class PageSection:
    """A part of the page with a heading; left out where it has no body."""

    slug: str
    title: str
    body: str


def write_document(path: Path, title: str, opening: str, sections: Iterable[PageSection]) -> None:
    """Write a page with its style and script inside.

    Args:
        path: of the `.html` file.
        title: plain text.
        opening: HTML that stands above the sections.
        sections: in their order.
    """
    style, script = _own_file("style.css"), _own_file("script.js")
    # The page may run this script and no other, and fetch nothing: what a recipe, a prompt or a
    # model says is shown, never obeyed.
    script_digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_digest}'"
    # A section without figures leaves no heading and no link behind.
    shown_sections = [section for section in sections if section.body]
    section_links = "".join(f'<a href="#{s.slug}">{escape(s.title)}</a>' for s in shown_sections)
    page_parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style></head><body>",
        f"<header>{opening}</header>",
        f'<nav aria-label="Sections">{section_links}</nav>' if len(shown_sections) > 2 else "",
        "<main>",
        *(
            f'<section id="{s.slug}" aria-labelledby="{s.slug}-title">'
            f'<h2 id="{s.slug}-title">{escape(s.title)}</h2>\n{s.body}</section>'
            for s in shown_sections
        ),
        f"</main><script>{script}</script></body></html>",
    ]
    # A reader who reloads while the page is written sees the old one or the new one.
    with write_atomically(path) as file:
        file.write("\n".join(part for part in page_parts if part) + "\n")


def _own_file(name: str) -> str:
    return (resources.files("toolkit.report") / name).read_text(encoding="utf-8")


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def panels(*parts: str) -> str:
    """Charts beside each other where there is room, else one below the other."""
    return f'<div class="panels">{"".join(part for part in parts if part)}</div>'


def table(
    caption: str,
    titles: Sequence[str],
    rows: Iterable[tuple[Sequence[Cell | str], str]],
    *,
    sortable: bool = False,
) -> str:
    """A table whose first column names the row; wider than the page, it scrolls by itself.

    Args:
        caption: what it shows.
        titles: of the columns.
        rows: cells, and the row's class or nothing.
        sortable: whether the script makes buttons of the titles.
    """
    head_cells = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body_rows = "".join(_row(cells, kind) for cells, kind in rows)
    kind = ' class="sortable"' if sortable else ""
    # Focusable, so that the keyboard can scroll it too.
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{escape(caption)}">'
        f"<table{kind}><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head_cells}</tr></thead><tbody>{body_rows}</tbody></table></div>"
    )


def _row(cells: Sequence[Cell | str], kind: str) -> str:
    row_html = ""
    for number, given in enumerate(cells):
        cell = given if isinstance(given, Cell) else Cell(given)
        tag = 'th scope="row"' if number == 0 else "td"
        # All digits, so that the script sorts by the figure and not by what is shown of it.
        value_attribute = "" if cell.value is None else f' data-value="{cell.value!r}"'
        detail_html = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
        row_html += f"<{tag}{value_attribute}>{escape(cell.words)}{detail_html}</{tag.split()[0]}>"
    return f'<tr class="{kind}">{row_html}</tr>' if kind else f"<tr>{row_html}</tr>"


def folded(title: str, text: str, *, is_open: bool = False) -> str:
    """A text as it is, behind its title."""
    mark = " open" if is_open else ""
    return (
        f"<details{mark}><summary>{escape(title)}</summary>"
        f'<pre tabindex="0" aria-label="{escape(title)}">{escape(text)}</pre></details>'
    )
