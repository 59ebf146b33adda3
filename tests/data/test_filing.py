"""Inline-XBRL pages to text."""

from __future__ import annotations

import pytest

from toolkit.data.filing import filing_sections, page_text
from toolkit.errors import DataError


def page(number: int, body: str) -> str:
    return (
        f"<div><span>ACME CORP</span></div>{body}"
        f"<div><span>{number}</span></div><hr style='page-break-after:always'/>"
    )


PROSE = "Our stores compete on price and service with many others. " * 30

BOLD = "<div><span style='font-weight:700'>{}</span></div>"
ROWS = (
    "<table><tr><td></td><td>Net sales</td><td>$</td>"
    "<td><ix:nonFraction>106,566</ix:nonFraction></td><td>(</td><td>0.8</td><td>)%</td></tr>"
    "<tr><td>•</td><td>Stores</td></tr></table>"
)
SECOND = f"<div>sell more&#160;goods.</div>{BOLD.format('Item 2. Properties')}<div>{PROSE}</div>"
FILING = f"""<?xml version='1.0' encoding='ASCII'?><html><head><title>t</title></head><body>
<div style="display:none"><ix:header><ix:hidden>SECRET-XBRL</ix:hidden></ix:header></div>
{page(1, BOLD.format("Item 1. Business") + f"<div>{PROSE}We may</div>")}
{page(2, SECOND)}
{page(3, ROWS)}
</body></html>""".encode()


def test_hidden_headers_and_furniture_are_gone_and_figures_are_whole():
    text = "\n".join(text for _, text in filing_sections(FILING, "acme.html"))
    assert "SECRET-XBRL" not in text
    assert "ACME CORP" not in text
    assert not any(line.strip().isdigit() for line in text.splitlines())
    assert "Net sales | $106,566 | (0.8)%\n• Stores" in text


def test_a_sentence_cut_by_a_page_end_is_whole_again():
    text = "\n".join(text for _, text in filing_sections(FILING, "acme.html"))
    assert "We may sell more goods." in text


def test_sections_open_at_items():
    headings = [heading for heading, _ in filing_sections(FILING, "acme.html")]
    assert headings == ["Item 1. Business", "Item 2. Properties"]


def test_an_empty_page_is_an_error():
    with pytest.raises(DataError, match="holds no text"):
        page_text(b"<html><body><div style='display:none'>x</div></body></html>", "x.html")


def test_nested_tables_are_read_once():
    inner = "<table><tr><td>inner</td><td>7</td></tr></table>"
    text = page_text(f"<table><tr><td>before{inner}after</td></tr></table>".encode(), "x.html")
    assert text.split() == ["before", "inner", "|", "7", "after"]
    assert "Caption" in page_text(b"<table><caption>Caption<tr><td>1</table>", "x.html")


def test_what_is_not_shown_is_not_read_in_tables_either():
    page = (
        "<table><tr style='display: none'><td>secret</td></tr>"
        "<tr><td>shown<script>let code</script><style>p {}</style></td><td>2</td></tr></table>"
    )
    assert page_text(page.encode(), "x.html") == "shown | 2"


def test_deep_pages_are_read_or_refused():
    def nested(depth: int) -> bytes:
        return b"<div>" * depth + b"deep" + b"</div>" * depth

    assert page_text(nested(300), "x.html") == "deep"
    with pytest.raises(DataError, match="nested too deeply"):
        page_text(nested(1500), "x.html")
