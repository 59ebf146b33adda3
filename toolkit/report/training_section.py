"""What training did: loss, learning rate, and what was learned and forgotten on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from toolkit.report.charts import Axis, Plot, finite
from toolkit.report.html import PageSection, panels, paragraph

_MOST_POINTS = 400
"""Of a line: more cannot be told apart on a screen, and a long run has a hundred thousand steps."""


def training_section(rows: Sequence[Mapping[str, Any]]) -> PageSection:
    """Charts of the rows of `metrics.jsonl`."""
    tokens = _tokens_after(rows)
    steps = [row for row in rows if finite([row.get("loss")])]
    if len(steps) < 2:
        return PageSection("training", "Training", "")
    x_steps = [tokens[int(row["step"])] for row in steps]
    losses = thin(x_steps, [float(row["loss"]) for row in steps])
    charts = [_line_chart("loss, nats a token", losses, "training loss", smooth=True)]
    rates = [(tokens[int(r["step"])], r.get("learning_rate")) for r in steps]
    known = [(x, float(rate)) for x, rate in rates if rate is not None]
    if len(known) > 1:
        curve = thin([x for x, _ in known], [rate for _, rate in known])
        charts.append(_line_chart("learning rate", curve, "learning rate", "s0"))
    looks = [
        chart
        for role in ("domain", "general")
        if (chart := _look_chart(rows, tokens, role)) is not None
    ]
    body = panels(*charts, *looks)
    if looks:
        body += paragraph(
            "The two lower charts score the same first validation documents while training goes "
            "on: a falling domain line is learning, a rising general line is forgetting.",
            "note",
        )
    return PageSection("training", "Training", body)


def thin(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Means of neighbors, so that at most a few hundred points are left.

    >>> thin([1.0, 2.0], [3.0, 4.0])
    [(1.0, 3.0), (2.0, 4.0)]
    """
    size = -(-len(xs) // _MOST_POINTS)
    parts = [slice(start, start + size) for start in range(0, len(xs), size)]
    return [(fmean(xs[part]), fmean(ys[part])) for part in parts]


def running_means(values: Sequence[float], reach: int) -> list[float]:
    """Means of each value with its neighbors up to `reach` places away.

    >>> running_means([1.0, 2.0, 6.0], 1)
    [1.5, 3.0, 4.0]
    """
    places = range(len(values))
    return [fmean(values[max(0, place - reach) : place + reach + 1]) for place in places]


def _tokens_after(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Tokens trained on after each step."""
    total, after = 0.0, {0: 0.0}
    for row in rows:
        total += float(row.get("tokens") or 0.0)
        after[int(row["step"])] = total
    return after


def _line_chart(
    title: str,
    points: Sequence[tuple[float, float]],
    label: str,
    series: str = "s1",
    *,
    smooth: bool = False,
) -> str:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    plot = Plot(
        Axis(0.0, max(xs), "tokens trained on"),
        Axis.around(ys, title),
        f"{label}: from {ys[0]:.3g} to {ys[-1]:.3g}",
        height=200,
        nearest="x",
    )
    plot.line(xs, ys, f"{series} thin faint" if smooth else series)
    if smooth:  # single steps are noisy: what they come to is read from their neighbors
        plot.line(xs, running_means(ys, max(1, len(ys) // 20)), series)
    for x, y in points:
        plot.target(x, y, f"{x:,.0f} tokens\n{label} {y:.4g}")
    return plot.html()


def _look_chart(
    rows: Sequence[Mapping[str, Any]], tokens: Mapping[int, float], role: str
) -> str | None:
    name = f"{role}_bits_per_byte"
    points = [
        (tokens[int(row["step"])], float(row[name])) for row in rows if finite([row.get(name)])
    ]
    if len(points) < 2:
        return None
    start = points[0][1]
    plot = Plot(
        Axis(0.0, max(tokens.values()), "tokens trained on"),
        Axis.around([y for _, y in points], f"{role}, bits per byte (down is better)"),
        f"{role} bits per byte while training: from {start:.4f} to {points[-1][1]:.4f}",
        height=200,
        nearest="x",
    )
    series = "s3" if role == "domain" else "s2"
    plot.rule(start, "at the start")
    plot.line([x for x, _ in points], [y for _, y in points], series)
    for x, y in points:
        plot.mark(x, y, series, tip=f"{x:,.0f} tokens\n{role} {y:.4f}\n{y - start:+.4f}")
    return plot.html()
