"""A diagnosis as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from toolkit.diagnose.table import cells, column_titles, legend, loss_cells
from toolkit.report.charts import SERIES_SHAPES, Axis, Plot, finite, key, short_number
from toolkit.report.html import PageSection, paragraph, table, write_document

_Line = tuple[str, Sequence[float | None]]
"""What a line is, and its value at each layer."""


def write_diagnosis_page(results: Mapping[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        results: the diagnosis, as plain values.
        path: of the `.html` file.
    """
    title = f"{results['merge']}: what the merge did"
    mark = "warn" if results["remarks"] else "fine"
    opening = (
        f"<h1>{escape(title)}</h1>"
        + paragraph(
            f"Against {', '.join(results['parents'])}; task vectors are taken against "
            f"{results['base']}."
        )
        + "".join(paragraph(line, mark) for line in results["summary"])
        + "".join(paragraph(line, "note") for line in results["notes"])
    )
    sections = [
        PageSection("losses", "Loss on a short text", _losses(results["losses"])),
        PageSection("layers", "Layer by layer", _charts(results) if results["layers"] else ""),
        PageSection("figures", "Figures", _figures(results)),
    ]
    write_document(path, title, opening, sections)


def _losses(losses: Sequence[Mapping[str, Any]]) -> str:
    if not losses:
        return ""
    rows = ((loss_cells(loss), "") for loss in losses)
    note = "A short text tells a sound model from a broken one, and no more."
    titles = ["", "bits per byte", "bits per token"]
    return table("Lower is better", titles, rows) + paragraph(note, "note")


def _figures(results: Mapping[str, Any]) -> str:
    rows = [
        *(([f"layer {row['name']}", *cells(row, results)], "") for row in results["layers"]),
        *(([row["name"], *cells(row, results)], "") for row in results["kinds"]),
        (["all", *cells(results["whole"], results)], "chosen"),
    ]
    titles = ["", *column_titles(results)]
    return table("Layers, kinds of tensors, and all", titles, rows) + paragraph(
        legend(results), "note"
    )


def _charts(results: Mapping[str, Any]) -> str:
    """Panels over depth: how far, how near to each parent, how alike, and where within a layer."""
    whole, layers = results["whole"], results["layers"]
    names = [str(row["name"]) for row in layers]

    def lines(figure: str, words: str = "{}") -> list[_Line]:
        """One line a model or pair, of a figure that each layer has by model or pair."""
        return [(words.format(k), [row[figure].get(k) for row in layers]) for k in whole[figure]]

    moved: list[_Line] = [("merge", [row["moved"] for row in layers])]
    charts = [
        _chart(
            "how far from the base (relative norm)",
            names,
            moved + lines("task_norms", "task vector {}"),
            logarithmic=True,
        ),
        _chart("distance from each parent", names, lines("distances")),
    ]
    if whole["cosines"]:
        charts.append(
            _chart(
                "the parents' task vectors: cosine, and share of agreeing signs",
                names,
                lines("cosines", "cosine {}") + lines("agreement", "signs {}"),
            )
        )
    if whole["trimmed"]:
        shares: list[_Line] = [
            (label, [row["trimmed"].get(label, {}).get("squares") for row in layers])
            for label in whole["trimmed"]
        ]
        charts.append(_chart("removed by trimming: share of squared norm", names, shares))
    kinds: list[_Line] = []
    for kind in dict.fromkeys(part["kind"] for part in results["parts"]):
        found = {
            str(part["layer"]): part["moved"] for part in results["parts"] if part["kind"] == kind
        }
        kinds.append((kind, [found.get(name) for name in names]))
    charts.append(_chart("how far, by kind of tensor", names, kinds, logarithmic=True))
    return "".join(charts)


def _chart(
    title: str, names: Sequence[str], lines: Sequence[_Line], *, logarithmic: bool = False
) -> str:
    plot = Plot(
        Axis(-0.5, len(names) - 0.5, "layer", min(8, len(names)), show=lambda at: names[int(at)]),
        Axis.around([v for _, values in lines for v in values], title, logarithmic=logarithmic),
        f"{title}, over {len(names)} layers; the figures stand in the table",
        height=220,
        nearest="x",
    )
    looks = [
        (f"s{number % 6}", SERIES_SHAPES[number % len(SERIES_SHAPES)])
        for number in range(len(lines))
    ]
    for (_, values), (series, shape) in zip(lines, looks, strict=True):
        known = [(at, v) for at, v in enumerate(values) if v is not None and finite([v])]
        plot.line([float(at) for at, _ in known], [v for _, v in known], series)
        for at, value in known:
            plot.mark(at, value, series, shape=shape)
    for at, name in enumerate(names):
        here = [(label, values[at]) for label, values in lines]
        known_here = [(label, v) for label, v in here if v is not None and finite([v])]
        if known_here:
            figures = [f"{label}: {short_number(float(f'{v:.4g}'))}" for label, v in known_here]
            plot.target(at, known_here[0][1], "\n".join([f"layer {name}", *figures]))
    return key((label, *look) for (label, _), look in zip(lines, looks, strict=True)) + plot.html()
