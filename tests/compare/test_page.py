"""The tables and the page of a comparison: what stands where, and that nothing is lost of it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from tests.helpers.compared import make_comparison
from toolkit.compare.page import write_page
from toolkit.compare.results import ComparisonResults
from toolkit.compare.table import sentence_of, show_comparison


def text_of(path: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8")))


def test_the_page_says_which_ways_leave_the_line(tmp_path: Path):
    path = tmp_path / "compare.html"
    write_page(make_comparison(), path)
    text = " ".join(text_of(path).split())
    assert (
        "Above the line of plain merges on retention: stay-near, stay-near + plain mean. Below it: "
        "low-rate, low-rate + search." in text
    )
    assert "3 stay-near" not in text  # numbered in the order of the table
    assert "5 stay-near" in text
    assert "76 (72 to 80)" in text
    assert "+20, +15 to +25 points" in text
    assert "linear alpha=0.4875" in text
    written = path.read_text(encoding="utf-8")
    assert written.count('class="plot') == 1  # one set has a line
    (marks,) = re.findall(r'data-marks="([^"]*)"', written)
    assert len(json.loads(html.unescape(marks))) == 6 + 6  # the line with both ends, and the ways
    write_page(make_comparison(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_names_are_shown_and_never_obeyed(tmp_path: Path):
    path = tmp_path / "compare.html"
    write_page(make_comparison(description="<script>alert(1)</script>"), path)
    assert "<script>alert" not in path.read_text(encoding="utf-8")


def test_without_a_line_or_a_gain_the_page_says_so(tmp_path: Path):
    values = make_comparison().model_dump(mode="json")
    for one in values["sets"]:
        one["has_line"] = False
    for way in values["figures"]:
        way["gain_kept"] = None
        for standing in way["sets"].values():
            standing |= {"distance": None, "standing": None}
        for seed in way["seeds"].values():
            seed["gain_kept"] = None
    for point in values["line"]:
        point["gain_kept"] = None
    results = ComparisonResults.model_validate(values)
    path = tmp_path / "compare.html"
    write_page(results, path)
    assert "There is no line of plain merges to be held against." in text_of(path)
    assert sentence_of(results, results.figures[0]) == "there is no line to be held against."
    show_comparison(results, tmp_path)


def test_the_terminal_says_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    show_comparison(make_comparison(), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("stay-near + plain mean  ")]
    assert "95 (91 to 99)" in row
    assert "+0.040 [+20, +15 to +25: above]" in row
    assert "low-rate: below the line on retention (-20, -25 to -15 points)." in lines
    assert any(line.startswith("as-it-stands  ") and "98,659" in line for line in lines)
    assert (
        ComparisonResults.model_validate(json.loads(make_comparison().model_dump_json()))
        == make_comparison()
    )
