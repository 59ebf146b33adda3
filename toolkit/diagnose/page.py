"""A diagnosis as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from toolkit.diagnose.figures import Diagnosis
from toolkit.diagnose.results import DiagnosisResults, Loss, pair_words
from toolkit.diagnose.table import column_titles, figure_cells, legend, loss_cells
from toolkit.report.charts import SERIES_SHAPES, Axis, Plot, finite, key, short_number
from toolkit.report.html import PageSection, paragraph, table, write_document
from toolkit.report.measured_section import achieved_section

_Line = tuple[str, Sequence[float | None]]
"""What a line is, and its value at each layer."""


def write_diagnosis_page(results: DiagnosisResults, path: Path) -> None:
    """Write the page."""
    title = f"{results.merge}: what the merge did"
    paragraph_kind = "warn" if results.remarks else "fine"
    opening_html = (
        f"<h1>{escape(title)}</h1>"
        + paragraph(
            f"Against {', '.join(results.parents)}; task vectors are taken against {results.base}."
        )
        + "".join(paragraph(line, paragraph_kind) for line in results.summary)
        + "".join(paragraph(line, "note") for line in results.notes)
    )
    charts = _charts(results.diagnosis) if results.diagnosis.layers else ""
    sections = [
        PageSection("losses", "Loss on a short text", _loss_table(results.losses)),
        PageSection("layers", "Layer by layer", charts),
        achieved_section(results.achieved),
        PageSection("figures", "Figures", _figure_table(results)),
    ]
    write_document(path, title, opening_html, sections)


def _loss_table(losses: Sequence[Loss]) -> str:
    if not losses:
        return ""
    loss_rows = ((loss_cells(loss), "") for loss in losses)
    note = "A short text tells a sound model from a broken one, and no more."
    titles = ["", "bits per byte", "bits per token"]
    return table("Lower is better", titles, loss_rows) + paragraph(note, "note")


def _figure_table(results: DiagnosisResults) -> str:
    diagnosis = results.diagnosis
    figure_rows = [
        *(([f"layer {r.name}", *figure_cells(r, diagnosis)], "") for r in diagnosis.layers),
        *(([r.name, *figure_cells(r, diagnosis)], "") for r in diagnosis.kinds),
        (["all", *figure_cells(diagnosis.whole, diagnosis)], "chosen"),
    ]
    titles = ["", *column_titles(diagnosis)]
    return table("Layers, kinds of tensors, and all", titles, figure_rows) + paragraph(
        legend(results), "note"
    )


def _charts(diagnosis: Diagnosis) -> str:
    """Panels over depth: how far, how near to each parent, how alike, and where within a layer."""
    whole, layers = diagnosis.whole, diagnosis.layers
    layer_names = [layer.name for layer in layers]

    def lines_of(figure: str, words: str = "{}") -> list[_Line]:
        """One line per model or pair, of a figure that each layer has by model or pair."""
        return [
            (
                words.format(key if isinstance(key, str) else pair_words(key)),
                [getattr(layer, figure).get(key) for layer in layers],
            )
            for key in getattr(whole, figure)
        ]

    moved_lines: list[_Line] = [("merge", [layer.moved for layer in layers])]
    task_vectors = lines_of("task_norms", "task vector {}")
    how_far = "how far from the base (relative norm)"
    charts = [
        _chart(how_far, layer_names, moved_lines + task_vectors, logarithmic=True),
        _chart("distance from each parent", layer_names, lines_of("distances")),
    ]
    if whole.cosines:
        alike_lines = lines_of("cosines", "cosine {}") + lines_of("agreement", "signs {}")
        title = "the parents' task vectors: cosine, and share of agreeing signs"
        charts.append(_chart(title, layer_names, alike_lines))
    if whole.trimmed:
        removed_lines: list[_Line] = []
        for label in whole.trimmed:
            shares = [layer.trimmed.get(label) for layer in layers]
            removed_lines.append((label, [share.squares if share else None for share in shares]))
        charts.append(
            _chart("removed by trimming: share of squared norm", layer_names, removed_lines)
        )
    moved_by_kind: dict[str, dict[str, float | None]] = {}
    for (layer, kind), figures in diagnosis.parts.items():
        moved_by_kind.setdefault(kind, {})[layer] = figures.moved
    kind_lines: list[_Line] = [
        (kind, [by_layer.get(name) for name in layer_names])
        for kind, by_layer in moved_by_kind.items()
    ]
    charts.append(_chart("how far, by kind of tensor", layer_names, kind_lines, logarithmic=True))
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
    line_looks = [
        (f"s{number % 6}", SERIES_SHAPES[number % len(SERIES_SHAPES)])
        for number in range(len(lines))
    ]
    for (_, values), (series, shape) in zip(lines, line_looks, strict=True):
        # What a layer lacks is left out of the line rather than drawn as zero.
        points = [(float(at), value) for at, v in enumerate(values) for value in finite([v])]
        plot.line([at for at, _ in points], [value for _, value in points], series)
        for at, value in points:
            plot.mark(at, value, series, shape=shape)
    # One target per layer and not per point: lines lie too close to be pointed at one by one.
    for number, name in enumerate(names):
        layer_values = [
            (label, value) for label, values in lines for value in finite([values[number]])
        ]
        if layer_values:
            figures = [
                f"{label}: {short_number(float(f'{value:.4g}'))}" for label, value in layer_values
            ]
            plot.target(number, layer_values[0][1], "\n".join([f"layer {name}", *figures]))
    return (
        key((label, *look) for (label, _), look in zip(lines, line_looks, strict=True))
        + plot.html()
    )
