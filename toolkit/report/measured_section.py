"""What the test sets say: three models with intervals, document by document, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from toolkit.report.charts import Axis, Plot
from toolkit.report.html import Cell, PageSection, panels, paragraph, table
from toolkit.report.table import set_rows
from toolkit.report.verdict import MODELS, ROLES, counts_of, interval, signed_interval, unit_of


def models_section(results: Mapping[str, Any]) -> PageSection:
    """Changes against the general model as a chart, and all figures as a table."""
    titles = [""]
    for role in ROLES:
        titles += [f"{role}, {unit_of(results, role)} ({counts_of(results, role)})", "change"]
    rows: list[tuple[list[Cell | str], str]] = []
    for model, title in MODELS:
        figures = results["models"][model]
        cells: list[Cell | str] = [
            Cell(title, detail=results["chosen"] if model == "merge" else "")
        ]
        for role in ROLES:
            cells.append(_figure(figures[role], signed=False))
            change = figures[f"{role}_change"]
            cells.append("" if model == "general" else _figure(change, signed=True))
        rows.append((cells, "chosen" if model == "merge" else ""))
    times = results.get("test_scorings", 1)
    scored = "scored once" if times == 1 else f"scored {times} times"
    body = (
        panels(*(_change_chart(results, role) for role in ROLES))
        + table(f"Test sets, {scored}; lower is better, 95 % intervals", titles, rows)
        + _sets(results)
        + paragraph(
            "Intervals: over groups of items, Student's t, moved outwards by the skewness that "
            "the groups show and by what so few may hide. Changes are paired: both models on the "
            "same items, against the general model. What decides is bounded in the same way.",
            "note",
        )
    )
    return PageSection("test", "Test sets", body)


def _figure(value: Mapping[str, float], *, signed: bool) -> Cell:
    words = (signed_interval if signed else interval)(value)
    estimate, _, rest = words.partition(" ")
    return Cell(estimate, value["estimate"], rest)


def _sets(results: Mapping[str, Any]) -> str:
    shown = set_rows(results)
    if not shown:
        return ""
    rows: list[tuple[list[Cell | str], str]] = []
    for name, role, unit, figures in shown:
        parts = [figure.partition(" ") for figure in figures]
        cells = [Cell(estimate, float(estimate), rest) for estimate, _, rest in parts]
        rows.append(([Cell(name, detail=f"{role}, {unit}"), *cells], ""))
    titles = ["", *(title for _, title in MODELS)]
    return table("Set by set; sets with the role watch take no part in the choice", titles, rows)


def _change_chart(results: Mapping[str, Any], role: str) -> str:
    """Two models' changes against the general model, as dots with their intervals."""
    shown = [(key, title) for key, title in MODELS if key != "general"]
    changes = {key: results["models"][key][f"{role}_change"] for key, _ in shown}
    ends = [change[end] for change in changes.values() for end in ("low", "high")]
    limit = results["tolerance"] if role == "general" else 0.0
    title = f"{role}: change in {unit_of(results, role)} (left is better)"
    words = "; ".join(f"{model} {signed_interval(changes[key])}" for key, model in shown)
    plot = Plot(
        Axis.around([*ends, 0.0, limit], title),
        Axis(0.0, 2.0, "", 0),
        f"{role}, change against the general model: {words}",
        height=110,
    )
    plot.upright(0.0)
    for number, (key, model) in enumerate(shown):
        change, series = changes[key], ("s2", "s1")[number]
        y = (1.4, 0.4)[number]
        plot.line([change["low"], change["high"]], [y, y], series)
        tip = f"{model}\n{signed_interval(change)}"
        plot.mark(change["estimate"], y, series, shape=("triangle", "circle")[number], tip=tip)
        plot.caption(y, model, series)
    return plot.html()


def documents_section(results: Mapping[str, Any]) -> PageSection:
    """Document by document: how the merge differs from the general model and the specialist."""
    documents = results.get("documents") or ()
    parts = []
    for name in dict.fromkeys(row["set"] for row in documents):
        rows = [row for row in documents if row["set"] == name]
        charts = [_difference_chart(rows, name, other) for other in ("general", "specialist")]
        heading = escape(f"{name} ({rows[0]['role']})")
        parts.append(f"<h3>{heading}</h3>{panels(*charts)}")
    if not parts:
        return PageSection("documents", "Document by document", "")
    note = (
        "A bar a document of the test sets, sorted; below zero the merge is better. "
        "Whether a mean rests on many documents or on a few can be seen here."
    )
    return PageSection(
        "documents", "Document by document", paragraph(note, "note") + "".join(parts)
    )


def _difference_chart(rows: Sequence[Mapping[str, Any]], name: str, other: str) -> str:
    ordered = sorted(rows, key=lambda row: (row["merge"] - row[other], str(row["id"])))
    values = [row["merge"] - row[other] for row in ordered]
    better = sum(value < 0.0 for value in values)
    against = "general model" if other == "general" else other
    plot = Plot(
        Axis(0.0, float(len(values)), "", 0),
        Axis.around([*values, 0.0], f"merge − {against}: better on {better} of {len(values)}"),
        f"{name}: the merge is better than the {against} on {better} of {len(values)} documents",
        height=200,
        nearest="x",
    )
    plot.bars(values[:better], "s1")
    plot.bars(values[better:], "s2", first=float(better))
    for number, (row, value) in enumerate(zip(ordered, values, strict=True)):
        group = f"\n{row['group']}" if row.get("group") else ""
        figures = f"merge {row['merge']:.4f}, {against} {row[other]:.4f}"
        tip = f"{row['id']}{group}\n{value:+.4f}\n{figures}"
        plot.target(number + 0.5, value, tip)
    return plot.html()


def answers_section(answers: Sequence[Mapping[str, str]], chosen: str) -> PageSection:
    """The same prompts answered by the three models."""
    parts = []
    for row in answers:
        columns = "".join(
            f"<div><dt>{escape(f'{title}: {chosen}' if key == 'merge' else title)}</dt>"
            f"<dd>{escape(row[key]) or '(nothing)'}</dd></div>"
            for key, title in MODELS
        )
        parts.append(f'<div class="answer"><p>{escape(row["prompt"])}</p><dl>{columns}</dl></div>')
    if not parts:
        return PageSection("answers", "Side by side", "")
    note = (
        "The same prompts to all three, greedy, cut off after a few dozen tokens. Examples show "
        "what the figures are about; they prove nothing."
    )
    return PageSection("answers", "Side by side", paragraph(note, "note") + "".join(parts))
