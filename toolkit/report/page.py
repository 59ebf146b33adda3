"""The report as one self-contained HTML page: opens anywhere, offline, and can be mailed."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from toolkit.manifest import write_atomically
from toolkit.report.table import MODELS, interval, kept_lines, signed_interval

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2733; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #d8dee5; }
th:first-child, td:first-child { text-align: left; }
tr.chosen { background: #e8f3ec; font-weight: 600; } tr.out td { color: #8a94a0; }
pre { background: #f4f6f8; padding: 1rem; overflow-x: auto; font-size: .9rem; }
p.note { color: #55606c; font-size: .9rem; }
"""


def write_page(results: Mapping[str, Any], merge_yaml: str, path: Path) -> None:
    """Write the page.

    Args:
        results: of the merge stage.
        merge_yaml: the chosen merge.
        path: of the `.html` file.
    """
    title = f"{results['recipe']}: which merge, and what it keeps"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(results['description'])}</p>",
        f"<p><strong>{escape(results['reason'])}</strong></p>",
        *(f"<p>{escape(line)}</p>" for line in kept_lines(results)),
        "<h2>Test sets, scored once</h2>",
        _test_table(results),
        '<p class="note">Bits per byte, lower is better, with 95 % intervals: percentile bootstrap '
        "over documents. Differences are paired: both models on the same documents.</p>",
        "<h2>Every candidate on the tuning sets</h2>",
        _plot(results),
        _candidate_table(results),
        '<p class="note">The search saw the tuning sets only. The best of many candidates looks '
        "better there than it is; the table above is the honest figure.</p>",
        "<h2>The chosen merge</h2>",
        f"<pre>{escape(merge_yaml)}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    with write_atomically(path) as file:
        file.write(f"<!doctype html><html lang='en'><head>{head}</head><body>")
        file.write("\n".join(parts))
        file.write("</body></html>\n")


def _test_table(results: Mapping[str, Any]) -> str:
    head = (
        f"<tr><th></th><th>domain ({results['test']['domain']} documents)</th><th>change</th>"
        f"<th>general ({results['test']['general']} documents)</th><th>change</th></tr>"
    )
    rows = []
    for key, title in MODELS:
        row = results["models"][key]
        changes = [
            "" if key == "general" else signed_interval(row[f"{role}_change"])
            for role in ("domain", "general")
        ]
        name = f"{title}: {results['chosen']}" if key == "merge" else title
        cells = [name, interval(row["domain"]), changes[0], interval(row["general"]), changes[1]]
        mark = ' class="chosen"' if key == "merge" else ""
        rows.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<table>{head}{''.join(rows)}</table>"


_FIGURES = ("domain", "general", "general_loss_bound")


def _candidate_table(results: Mapping[str, Any]) -> str:
    bound = f"general loss, {results['confidence']:.0%} bound"
    titles = ("candidate", "domain", "general", bound, "distance", "")
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = []
    known = [row for row in results["candidates"] if row["domain"] is not None]
    for row in sorted(known, key=lambda item: item["domain"]):
        cells = [
            row["name"],
            *("" if row[key] is None else f"{row[key]:+.4f}" for key in _FIGURES),
            f"{row['distance']:.2f}",
            "within tolerance" if row["qualified"] else "loses too much",
        ]
        mark = "chosen" if row["name"] == results["chosen"] else "" if row["qualified"] else "out"
        line = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{mark}">{line}</tr>')
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _plot(results: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    families: dict[str, list[dict[str, Any]]] = {}
    for row in results["candidates"]:
        families.setdefault(row["name"].split()[0], []).append(row)
    for family, rows in families.items():
        ends = family in {"general", "specialist"}
        figure.add_scatter(
            x=[row["domain"] for row in rows],
            y=[row["general"] for row in rows],
            text=[row["name"] for row in rows],
            name=family,
            mode="markers+text" if ends else "lines+markers" if family == "linear" else "markers",
            textposition="top center",
            marker={"size": 13 if ends else 9, "symbol": "diamond" if ends else "circle"},
            hovertemplate="%{text}<br>domain %{x:.4f}<br>general %{y:.4f}<extra></extra>",
        )
    chosen = next(row for row in results["candidates"] if row["name"] == results["chosen"])
    figure.add_scatter(
        x=[chosen["domain"]],
        y=[chosen["general"]],
        name="chosen",
        mode="markers",
        marker={"size": 22, "symbol": "circle-open", "color": "#111", "line": {"width": 2}},
        hoverinfo="skip",
    )
    start = next(row for row in results["candidates"] if row["name"] == "general")
    figure.add_hline(
        y=start["general"] + results["tolerance"],
        line_dash="dot",
        annotation_text="general model + tolerance",
    )
    figure.update_layout(
        template="plotly_white",
        height=480,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        xaxis_title="domain, bits per byte (left is better)",
        yaxis_title="general, bits per byte (down is better)",
    )
    # A fixed id, so that the same results give the same bytes.
    html: str = figure.to_html(full_html=False, include_plotlyjs=True, div_id="candidates")
    return html
