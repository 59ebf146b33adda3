"""What training did: loss, learning rate, and what was learned and forgotten on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from toolkit.report.charts import Axis, Plot, finite
from toolkit.report.html import PageSection, panels, paragraph
from toolkit.report.verdict import ROLES
from toolkit.select.results import FigureRole

_MOST_POINTS = 400
"""Of a line: more cannot be told apart on a screen, and a long run has a hundred thousand steps."""


class TrainingRow(BaseModel):
    """A row of `metrics.jsonl`, as far as it is drawn."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    tokens: float | None = None
    """Tokens of the step; None of a row that only looks."""

    loss: float | None = None
    learning_rate: float | None = None
    domain_bits_per_byte: float | None = None
    general_bits_per_byte: float | None = None

    def look(self, role: FigureRole) -> float | None:
        """Bits per byte of a role's first validation documents."""
        return self.domain_bits_per_byte if role == "domain" else self.general_bits_per_byte


def training_section(rows: Sequence[TrainingRow]) -> PageSection:
    """Charts of the rows of `metrics.jsonl`."""
    tokens = _tokens_after(rows)
    # Where no row says how many tokens it trained on, what is left is how far it came in steps.
    along = "tokens"
    if not any(tokens.values()):
        tokens, along = {row.step: float(row.step) for row in rows}, "steps"
    # Rows of looks have no loss of training, and a loss that is no number is not drawn.
    steps = [(row, loss) for row in rows for loss in finite([row.loss])]
    if len(steps) < 2:
        return PageSection("training", "Training", "")
    loss_points = thin([tokens[row.step] for row, _ in steps], [loss for _, loss in steps])
    charts = [_line_chart("loss, nats a token", loss_points, "training loss", along, smooth=True)]
    rate_points = [
        (tokens[row.step], row.learning_rate) for row, _ in steps if row.learning_rate is not None
    ]
    if len(rate_points) > 1:
        rate_curve = thin([x for x, _ in rate_points], [rate for _, rate in rate_points])
        charts.append(_line_chart("learning rate", rate_curve, "learning rate", along, "s0"))
    looks = [
        chart for role in ROLES if (chart := _look_chart(rows, tokens, along, role)) is not None
    ]
    body = panels(*charts, *looks)
    if looks:
        body += paragraph(
            "The lower charts score the same first validation documents while training goes on: "
            "a falling domain line is learning, a rising general line is forgetting.",
            "note",
        )
    return PageSection("training", "Training", body)


def thin(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Means of neighbors, so that at most a few hundred points are left.

    >>> thin([1.0, 2.0], [3.0, 4.0])
    [(1.0, 3.0), (2.0, 4.0)]
    """
    size = -(-len(xs) // _MOST_POINTS)
    neighbor_slices = [slice(start, start + size) for start in range(0, len(xs), size)]
    return [(fmean(xs[part]), fmean(ys[part])) for part in neighbor_slices]


def running_means(values: Sequence[float], reach: int) -> list[float]:
    """Means of each value with its neighbors up to `reach` places away.

    >>> running_means([1.0, 2.0, 6.0], 1)
    [1.5, 3.0, 4.0]
    """
    places = range(len(values))
    return [fmean(values[max(0, place - reach) : place + reach + 1]) for place in places]


def _tokens_after(rows: Sequence[TrainingRow]) -> dict[int, float]:
    """Tokens trained on after each step."""
    tokens_so_far, tokens_by_step = 0.0, {0: 0.0}
    for row in rows:
        # A look trains on nothing, and stands at the tokens of its step.
        tokens_so_far += row.tokens or 0.0
        tokens_by_step[row.step] = tokens_so_far
    return tokens_by_step


def _line_chart(
    title: str,
    points: Sequence[tuple[float, float]],
    label: str,
    along: str,
    series: str = "s1",
    *,
    smooth: bool = False,
) -> str:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    plot = Plot(
        Axis(0.0, max(xs), f"{along} trained on"),
        Axis.around(ys, title),
        f"{label}: from {ys[0]:.3g} to {ys[-1]:.3g}",
        height=200,
        nearest="x",
    )
    plot.line(xs, ys, f"{series} thin faint" if smooth else series)
    if smooth:  # single steps are noisy: what they come to is read from their neighbors
        plot.line(xs, running_means(ys, max(1, len(ys) // 20)), series)
    for x, y in points:
        plot.target(x, y, f"{x:,.0f} {along}\n{label} {y:.4g}")
    return plot.html()


def _look_chart(
    rows: Sequence[TrainingRow], tokens: Mapping[int, float], along: str, role: FigureRole
) -> str | None:
    points = [(tokens[row.step], figure) for row in rows for figure in finite([row.look(role)])]
    if len(points) < 2:
        return None
    first_figure = points[0][1]
    plot = Plot(
        Axis(0.0, max(tokens.values()), f"{along} trained on"),
        Axis.around([y for _, y in points], f"{role}, bits per byte (down is better)"),
        f"{role} bits per byte while training: from {first_figure:.4f} to {points[-1][1]:.4f}",
        height=200,
        nearest="x",
    )
    series = "s3" if role == "domain" else "s2"
    plot.rule(first_figure, "at the start")
    plot.line([x for x, _ in points], [y for _, y in points], series)
    for x, y in points:
        plot.mark(x, y, series, tip=f"{x:,.0f} {along}\n{role} {y:.4f}\n{y - first_figure:+.4f}")
    return plot.html()
