"""Where marks and words stand, worked out by hand."""

from __future__ import annotations

import itertools
import json
import re
from html import unescape

import pytest

from toolkit.report.charts import Axis, Plot, key


def marks(html: str) -> list[list[object]]:
    found = re.search(r'data-marks="([^"]*)"', html)
    assert found
    read: list[list[object]] = json.loads(unescape(found[1]))
    return read


def test_places():
    axis = Axis(2.0, 6.0, "x")
    assert [axis.place(value) for value in (2.0, 3.0, 6.0)] == [0.0, 25.0, 100.0]
    assert axis.ticks() == [(0.0, "2"), (25.0, "3"), (50.0, "4"), (75.0, "5"), (100.0, "6")]


def test_places_on_a_logarithmic_axis():
    axis = Axis(0.01, 1.0, "x", logarithmic=True)
    assert axis.place(0.1) == pytest.approx(50.0)
    assert [words for _, words in axis.ticks()] == [
        "0.01",
        "0.02",
        "0.05",
        "0.1",
        "0.2",
        "0.5",
        "1",
    ]
    short = Axis(0.0064, 0.0081, "x", logarithmic=True)  # no 1, 2 or 5 in it
    assert [words for _, words in short.ticks()] == ["0.0065", "0.007", "0.0075", "0.008"]
    assert axis.place(0.0) == 0.0  # cannot be shown; it stands at the edge


def test_an_axis_around_values():
    axis = Axis.around([1.0, None, 2.0, float("nan")], "x", margin=0.1)
    assert (axis.low, axis.high) == pytest.approx((0.9, 2.1))
    assert Axis.around([3.0, 3.0], "x").low < 3.0 < Axis.around([3.0], "x").high
    assert Axis.around([], "x").high > Axis.around([], "x").low
    assert Axis.around([0.0, 2.0], "x", logarithmic=True).low > 0.0


def test_a_mark_and_its_words():
    plot = Plot(Axis(0.0, 4.0, "across"), Axis(0.0, 10.0, "up <b>"), "label & more")
    plot.mark(1.0, 2.5, "s1", tip="a < b\n2.5")
    html = plot.html()
    # a quarter across; a quarter up is three quarters down
    assert '<svg class="mark s1" x="25%" y="75%">' in html
    assert marks(html) == [[25.0, 75.0, "a < b\n2.5"]]
    assert "up &lt;b&gt;" in html
    assert 'aria-label="label &amp; more"' in html


def test_lines_bands_and_bars():
    plot = Plot(Axis(0.0, 2.0, ""), Axis(-1.0, 1.0, ""), "")
    plot.line([0.0, 1.0, 2.0], [0.0, 1.0, -1.0], "s1")
    plot.line([0.0, 1.0], [0.0, 1.0], "s2", stepped=True)
    plot.band([0.0, 2.0], [-1.0, 0.0], [0.0, 1.0], "s3")
    plot.bars([1.0], "s4", first=1.0)
    html = plot.html()
    assert 'd="M0 50L50 0L100 100"' in html
    assert 'd="M0 50H50V0"' in html
    assert 'd="M0 50 100 0 100 50 0 100z"' in html
    assert 'd="M54 50V0H96V50z"' in html


def test_names_do_not_cover_each_other():
    plot = Plot(Axis(0.0, 1.0, ""), Axis(0.0, 1.0, ""), "", height=200)
    for number, words in enumerate(("one name", "another name", "a third name")):
        plot.mark(0.5, 0.5 + number * 0.01, "s1")
        plot.name(0.5, 0.5 + number * 0.01, words)
    found = re.findall(r'y="([\d.]+)%" dx="(-?\d+)" dy="(-?\d+)"', plot.html())
    places = sorted((dx, float(y) * 2.0 + float(dy)) for y, dx, dy in found)
    assert len(places) == 3
    for (side, height), (next_side, next_height) in itertools.pairwise(places):
        assert side != next_side or next_height - height >= 13.0


@pytest.mark.parametrize("across", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_a_name_stays_within_the_narrowest_plot(across: float):
    plot = Plot(Axis(0.0, 1.0, ""), Axis(0.0, 1.0, ""), "")
    plot.mark(across, 0.5, "s1")
    plot.name(across, 0.5, "chosen, knee")
    found = re.search(r'x="([\d.]+)%" y="[\d.]+%" dx="(-?\d+)"', plot.html())
    assert found
    begin = float(found[1]) / 100.0 * 280.0 + float(found[2])
    wide = 12 * 7.6
    left, right = (begin, begin + wide) if float(found[2]) > 0 else (begin - wide, begin)
    assert left >= 0.0
    assert right <= 280.0


def test_a_name_does_not_cover_the_words_of_a_rule():
    plot = Plot(Axis(0.0, 1.0, ""), Axis(0.0, 1.0, ""), "", height=300)
    plot.rule(0.5, "general model")  # at 150 pixels, its words from 14 above to just above it
    plot.mark(0.95, 0.53, "s1")
    plot.name(0.95, 0.53, "general model")
    (dy,) = map(int, re.findall(r'dx="-13" dy="(-?\d+)"', plot.html()))
    assert abs(0.47 * 300 + dy - 4.0 - 141.0) >= 13.0


def test_a_key_is_escaped():
    assert "&lt;x&gt;" in key([("<x>", "s1", "circle")])
