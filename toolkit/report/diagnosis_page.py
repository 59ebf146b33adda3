"""A diagnosis as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from toolkit.manifest import write_atomically
from toolkit.report.diagnosis_table import cells, column_titles, legend, loss_cells
from toolkit.report.page import STYLE


def write_diagnosis_page(results: Mapping[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        results: the diagnosis, as plain values.
        path: of the `.html` file.
    """
    title = f"{results['merge']}: what the merge did"
    mark = "warn" if results["remarks"] else "fine"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Against {escape(', '.join(results['parents']))}; task vectors are taken against "
        f"{escape(results['base'])}.</p>",
        *(f'<p class="{mark}">{escape(line)}</p>' for line in results["summary"]),
        *(f'<p class="note">{escape(line)}</p>' for line in results["notes"]),
    ]
    if results["losses"]:
        parts += ["<h2>Loss on a short text</h2>", _loss_table(results["losses"])]
        parts.append('<p class="note">Lower is better. A short text tells a sound model from a '
                     "broken one, and no more.</p>")  # fmt: skip
    if results["layers"]:
        parts += ["<h2>Layer by layer</h2>", _plot(results)]
    parts += [
        "<h2>Figures</h2>",
        f"<div class='wide'>{_table(results)}</div>",
        f'<p class="note">{escape(legend(results))}</p>',
    ]
    style = (
        f"{STYLE}\np.warn {{ border-left: 4px solid #c0392b; padding-left: .8rem; }}\n"
        "p.fine { border-left: 4px solid #2e8b57; padding-left: .8rem; }\n"
        "div.wide { overflow-x: auto; }\n"
    )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    with write_atomically(path) as file:
        file.write(f"<!doctype html><html lang='en'><head>{head}</head><body>")
        file.write("\n".join(parts))
        file.write("</body></html>\n")


def _loss_table(losses: Sequence[Mapping[str, Any]]) -> str:
    head = "<tr><th></th><th>bits per byte</th><th>bits per token</th></tr>"
    return f"<table>{head}{''.join(_row(loss_cells(loss)) for loss in losses)}</table>"


def _table(results: Mapping[str, Any]) -> str:
    titles = ["", *column_titles(results)]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = [
        *(_row([f"layer {row['name']}", *cells(row, results)]) for row in results["layers"]),
        *(_row([row["name"], *cells(row, results)]) for row in results["kinds"]),
        _row(["all", *cells(results["whole"], results)], "chosen"),
    ]
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _row(words: Sequence[str], mark: str = "") -> str:
    line = "".join(f"<td>{escape(word)}</td>" for word in words)
    return f'<tr class="{mark}">{line}</tr>' if mark else f"<tr>{line}</tr>"


def _plot(results: Mapping[str, Any]) -> str:
    """Panels over depth: how far, how near to each parent, how alike, and where within a layer."""
    from plotly.subplots import make_subplots

    whole, layers = results["whole"], results["layers"]
    names = [row["name"] for row in layers]
    panels = ["how far from the base (relative norm)", "distance from each parent"]
    if whole["cosines"]:
        panels.append("the parents' task vectors: cosine, and share of agreeing signs")
    if whole["trimmed"]:
        panels.append("removed by trimming: share of squared norm")
    panels.append("how far, by kind of tensor")
    figure = make_subplots(
        rows=len(panels), cols=1, subplot_titles=panels, vertical_spacing=0.22 / len(panels)
    )

    def line(row: int, label: str, values: list[Any], **style: Any) -> None:
        figure.add_scatter(
            x=names, y=values, name=label, mode="lines+markers", row=row, col=1,
            line=style, legendgroup=panels[row - 1], legendgrouptitle_text=panels[row - 1],
        )  # fmt: skip

    line(1, "merge", [row["moved"] for row in layers], color="#111", width=3)
    for label in whole["task_norms"]:
        line(1, f"task vector {label}", [row["task_norms"][label] for row in layers], dash="dot")
    figure.update_yaxes(type="log", row=1, col=1)
    for label in whole["distances"]:
        line(2, label, [row["distances"][label] for row in layers])
    if whole["cosines"]:
        place = 3
        for pair in whole["cosines"]:
            line(place, f"cosine {pair}", [row["cosines"][pair] for row in layers])
            shares = [row["agreement"][pair] for row in layers]
            line(place, f"signs {pair}", shares, dash="dot")
    if whole["trimmed"]:
        place = len(panels) - 1
        for label in whole["trimmed"]:
            shares = [row["trimmed"].get(label, {}).get("squares") for row in layers]
            line(place, label, shares)
    for kind in dict.fromkeys(part["kind"] for part in results["parts"]):
        found = {part["layer"]: part["moved"] for part in results["parts"] if part["kind"] == kind}
        line(len(panels), kind, [found.get(name) for name in names])
    figure.update_yaxes(type="log", row=len(panels), col=1)
    figure.update_xaxes(title_text="layer", row=len(panels), col=1)
    figure.update_layout(
        template="plotly_white",
        height=260 * len(panels) + 80,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )
    # A fixed id, so that the same figures give the same bytes.
    html: str = figure.to_html(full_html=False, include_plotlyjs=True, div_id="layers")
    return html
