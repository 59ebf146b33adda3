"""Charts as inline SVG: they are drawn in Python, so they stand without a script and in print.

A plot is as wide as its place. Lines live in a stretched inner drawing whose strokes do not
stretch; marks and words are placed in percent and keep their size, so one drawing serves phone and
desktop.
`script.js` shows the nearest mark's words under the pointer, a finger, or the arrow keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

SHAPES = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "triangle": "M0-5.5L5.5 4.5h-11z",
    "diamond": "M0-6.5L6.5 0L0 6.5L-6.5 0z",
    "down": "M0 5.5L5.5-4.5h-11z",
    "cross": "M-4.5-4.5L4.5 4.5M-4.5 4.5L4.5-4.5",
    "ring": "M-10 0a10 10 0 1 0 20 0a10 10 0 1 0-20 0z",
}
"""Shapes beside colors, for those who see colors otherwise and for print."""

SERIES_SHAPES = ("circle", "square", "triangle", "down", "diamond")

_NARROW_PIXELS = 280.0
"""Width of a plot on a phone: words that do not collide there collide nowhere."""

_LETTER_PIXELS, _QUIET_LETTER_PIXELS = 7.6, 6.6
"""Of a letter of a name, which is bold, and of other words; of the widest fonts a page may get."""


def finite(values: Iterable[float | None]) -> list[float]:
    """The numbers among values: None, NaN and infinity are left out."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within a range, about `count` of them.

    >>> nice_ticks(0.03, 0.97, 4)
    [0.25, 0.5, 0.75]
    """
    if not high > low or count < 1:
        return []
    raw_step = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw_step))
    # A hair less than the raw step: one that fits but for rounding would be passed over.
    step = next(unit * size for size in (1, 2, 2.5, 5, 10) if unit * size >= raw_step * 0.999)
    # Ends of the range that are round but for rounding get a tick as well.
    first_number, last_number = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Takes away what binary fractions add: 3 * 0.1 is 0.30000000000000004.
    return [round(number * step, 12) for number in range(first_number, last_number + 1)]


def short_number(value: float) -> str:
    """A number with as few characters as a tick needs.

    >>> [short_number(v) for v in (0.0, 0.25, 1500.0, 80000.0, 2.5e6, 0.0002)]
    ['0', '0.25', '1,500', '80k', '2.5M', '2e-04']
    """
    if value == 0.0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    if abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{round(value, 6):g}"


@dataclass(frozen=True)
class Axis:
    """A range of numbers with a title.

    Attributes:
        low, high: the range that is shown.
        title: what the numbers are.
        num_ticks: about how many round numbers are written; 0 for none.
        logarithmic: whether equal ratios are equally far.
        show: how a number is written.
    """

    low: float
    high: float
    title: str
    num_ticks: int = 4
    logarithmic: bool = False
    show: Callable[[float], str] = short_number

    @classmethod
    def around(
        cls,
        values: Iterable[float | None],
        title: str,
        *,
        num_ticks: int = 4,
        logarithmic: bool = False,
        margin: float = 0.06,
    ) -> Axis:
        """An axis on which all the numbers among `values` have room."""
        shown_values = [v for v in finite(values) if v > 0.0 or not logarithmic] or [1.0]
        low, high = min(shown_values), max(shown_values)
        if logarithmic:
            return cls(low / 1.15, high * 1.15, title, num_ticks, True)
        # Equal numbers need some room too: `place` divides by the length of the axis.
        end_room = (high - low) * margin or abs(high) * margin or 1.0
        return cls(low - end_room, high + end_room, title, num_ticks)

    def place(self, value: float) -> float:
        """Percent of the way from the low end to the high end."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            # What is zero or below has no logarithm, and stands at the low end.
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        if high <= low:  # a single number has no way to be on
            return 50.0
        return 100.0 * (at - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places in percent, with what is written there."""
        tick_numbers = nice_ticks(self.low, self.high, self.num_ticks)
        if self.logarithmic:
            tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            round_numbers = [digit * 10.0**ten for ten in tens for digit in (1, 2, 5)]
            numbers_within = [number for number in round_numbers if self.low <= number <= self.high]
            # Over less than a decade or so a logarithm is as good as straight.
            tick_numbers = numbers_within if len(numbers_within) > 1 else tick_numbers
        return [(self.place(number), self.show(number)) for number in tick_numbers]


class Plot:
    """One chart, built mark by mark.

    Args:
        x, y: the axes; larger numbers stand further right and further up.
        label: what the chart shows, for those who cannot see it.
        height: pixels.
        nearest: which mark answers the pointer: the nearest one, or the nearest along x.
    """

    def __init__(
        self,
        x: Axis,
        y: Axis,
        label: str,
        *,
        height: int = 300,
        nearest: Literal["xy", "x"] = "xy",
    ) -> None:
        self._x, self._y, self._label = x, y, label
        self._height, self._nearest = height, nearest
        self._lines: list[str] = []
        self._marks: list[str] = []
        self._words: list[str] = []
        self._targets: list[tuple[float, float, str]] = []
        self._taken: list[tuple[float, float, float]] = []

    def line(
        self, xs: Sequence[float], ys: Sequence[float], series: str, *, stepped: bool = False
    ) -> None:
        """A line through points; `stepped` holds each value until the next."""
        path = ""
        for x, y in zip(xs, ys, strict=True):
            px, py = _short(self._x.place(x)), _short(100.0 - self._y.place(y))
            path += f"M{px} {py}" if not path else f"H{px}V{py}" if stepped else f"L{px} {py}"
        self._lines.append(f'<path class="line {series}" d="{path}"/>')

    def band(
        self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], series: str
    ) -> None:
        """The area between two lines."""
        way_there = list(zip(xs, highs, strict=True))
        way_back = list(zip(xs, lows, strict=True))[::-1]
        corner_words = " ".join(
            f"{_short(self._x.place(x))} {_short(100.0 - self._y.place(y))}"
            for x, y in way_there + way_back
        )
        self._lines.append(f'<path class="band {series}" d="M{corner_words}z"/>')

    def bars(self, values: Sequence[float], series: str, *, first: float = 0.0) -> None:
        """Bars from zero, one unit wide and one beside the other, from `first` on along x."""
        zero = _short(100.0 - self._y.place(0.0))
        path = ""
        for number, value in enumerate(values):
            left = _short(self._x.place(first + number + 0.08))
            right = _short(self._x.place(first + number + 0.92))
            path += f"M{left} {zero}V{_short(100.0 - self._y.place(value))}H{right}V{zero}z"
        self._lines.append(f'<path class="bars {series}" d="{path}"/>')

    def rule(self, y: float, words: str = "") -> None:
        """A line across at a height, with words at its right end."""
        rule_height = _short(100.0 - self._y.place(y))
        self._lines.append(f'<path class="rule" d="M0 {rule_height}H100"/>')
        if words:
            self._words.append(
                f'<text class="quiet" x="100%" y="{rule_height}%" dy="-5" text-anchor="end">'
                f"{escape(words)}</text>"
            )
            words_begin = _NARROW_PIXELS - len(words) * _QUIET_LETTER_PIXELS
            pixels_down = (100.0 - self._y.place(y)) / 100.0 * self._height
            # Counted nine times, so that a name would sooner hide several marks than these words.
            self._taken += [(words_begin, _NARROW_PIXELS, pixels_down - 9.0)] * 9

    def upright(self, x: float) -> None:
        """A line from bottom to top at a place."""
        rule_place = _short(self._x.place(x))
        self._lines.append(f'<path class="rule" d="M{rule_place} 0V100"/>')

    def mark(
        self, x: float, y: float, series: str, *, shape: str = "circle", tip: str = ""
    ) -> None:
        """A mark of constant size; `tip` is shown when it is pointed at, a line a line."""
        px, py = self._x.place(x), 100.0 - self._y.place(y)
        self._marks.append(
            f'<svg class="mark {series}" x="{_short(px)}%" y="{_short(py)}%">'
            f'<path d="{SHAPES[shape]}"/></svg>'
        )
        at = px / 100.0 * _NARROW_PIXELS
        self._taken.append((at - 5.0, at + 5.0, py / 100.0 * self._height))
        if tip:
            self.target(x, y, tip)

    def target(self, x: float, y: float, tip: str) -> None:
        """Words that are shown near a place, without a mark."""
        place = (round(self._x.place(x), 2), round(100.0 - self._y.place(y), 2))
        self._targets.append((*place, tip))

    def name(self, x: float, y: float, words: str, series: str = "") -> None:
        """Words beside a mark, where they hide the least of marks and of other words: few enough to
        fit beside it on a phone, about 18 letters."""
        px, py = self._x.place(x), 100.0 - self._y.place(y)
        mark_pixels, down = px / 100.0 * _NARROW_PIXELS, py / 100.0 * self._height
        wide = len(words) * _LETTER_PIXELS
        text_sides = ("end", "start") if px > 50.0 else ("start", "end")
        # Beside the mark first, then above and below in turn, a line further each time; where they
        # are alike the earlier wins.
        word_places = [(side, dy) for dy in (4, -15, 23, -34, 42, -53, 61) for side in text_sides]

        def cost(place: tuple[str, int]) -> tuple[int, int]:
            begin = mark_pixels + 13.0 if place[0] == "start" else mark_pixels - 13.0 - wide
            words_middle = down + place[1] - 4.0
            is_outside = begin < 0.0 or begin + wide > _NARROW_PIXELS
            is_outside |= not 8.0 <= words_middle <= self._height - 8.0
            num_hidden = sum(
                begin < x1 and x0 < begin + wide and abs(words_middle - y1) < 13.0
                for x0, x1, y1 in self._taken
            )
            return 100 * is_outside + num_hidden, abs(place[1] - 4)

        side, dy = min(word_places, key=cost)
        begin = mark_pixels + 13.0 if side == "start" else mark_pixels - 13.0 - wide
        self._taken += [(begin, begin + wide, down + dy - 4.0)] * 9  # words on words: worst of all
        self._words.append(
            f'<text class="name {series}" x="{_short(px)}%" y="{_short(py)}%" '
            f'dx="{13 if side == "start" else -13}" dy="{dy}" text-anchor="{side}">'
            f"{escape(words)}</text>"
        )

    def caption(self, y: float, words: str, series: str = "") -> None:
        """Words at the left end, just above a height."""
        self._words.append(
            f'<text class="name {series}" x="0" y="{_short(100.0 - self._y.place(y))}%" dy="-9">'
            f"{escape(words)}</text>"
        )

    def html(self) -> str:
        """The chart as one element."""
        grid_lines, tick_words = [], []
        for at, words in self._y.ticks():
            height = _short(100.0 - at)
            grid_lines.append(f'<path class="grid" d="M0 {height}H100"/>')
            tick_words.append(
                f'<text x="-8" y="{height}%" dy="4" text-anchor="end">{escape(words)}</text>'
            )
        for at, words in self._x.ticks():
            # Words at the ends are turned inwards: centered, they would be cut off at the edge.
            side = "end" if at > 96.0 else "start" if at < 4.0 else "middle"
            tick_words.append(
                f'<text x="{_short(at)}%" y="100%" dy="18" text-anchor="{side}">'
                f"{escape(words)}</text>"
            )
        # Lines are drawn in percent of a drawing that is stretched to the plot; marks and words are
        # placed outside it, as they would be stretched too.
        stretched_svg = '<svg viewBox="0 0 100 100" preserveAspectRatio="none">'
        # Named by attribute, so that the words need no id that is unique on the page.
        drawing = (
            f'<svg role="img" aria-label="{escape(self._label)}" height="{self._height}">'
            f"{stretched_svg}{''.join(grid_lines)}</svg>"
            f'<g class="ticks">{"".join(tick_words)}</g>'
            f"{stretched_svg}{''.join(self._lines)}</svg>"
            f"{''.join(self._marks)}{''.join(self._words)}</svg>"
        )
        # In one attribute, which `script.js` parses: words of a recipe or a document never become
        # code of the page.
        targets_json = json.dumps(self._targets, ensure_ascii=False, separators=(",", ":"))
        title_above = f'<p class="axis">{escape(self._y.title)}</p>' if self._y.title else ""
        title_below = f'<p class="axis below">{escape(self._x.title)}</p>' if self._x.title else ""
        bare_class = "" if self._y.num_ticks else " bare"
        return (
            f'<div class="chart">{title_above}<div class="plot{bare_class}" '
            f'data-nearest="{self._nearest}" data-marks="{escape(targets_json)}">{drawing}</div>'
            f"{title_below}</div>"
        )


def key(entries: Iterable[tuple[str, str, str]]) -> str:
    """Which shape and color is what: `(words, series, shape)` of each, in one line."""
    items = "".join(
        f'<li><svg class="mark {series}" width="14" height="14" viewBox="-7 -7 14 14" '
        f'aria-hidden="true"><path d="{SHAPES[shape]}"/></svg> {escape(words)}</li>'
        for words, series, shape in entries
    )
    return f'<ul class="key">{items}</ul>'


def _short(number: float) -> str:
    """Two decimals of a percent are a tenth of a pixel.

    >>> _short(12.5), _short(-0.001), _short(100.0)
    ('12.5', '0', '100')
    """
    # Adding 0.0 turns a minus zero into zero.
    return f"{round(number, 2) + 0.0:g}" if abs(number) >= 0.005 else "0"
