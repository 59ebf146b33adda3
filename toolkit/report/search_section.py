"""What the search found: the front, the plain sweep, its course, and every candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.report.charts import SERIES_SHAPES, Axis, Plot, finite, key
from toolkit.report.html import Cell, PageSection, panels, paragraph, table
from toolkit.report.verdict import sets_of, unit_of

Row = Mapping[str, Any]
ENDPOINTS = ("general", "specialist")


def front_section(results: Mapping[str, Any]) -> PageSection:
    """Domain against general, a mark a candidate; general sets in other units by themselves."""
    start = next((row for row in results["candidates"] if row["name"] == "general"), None)
    limit = None
    if start is not None and start["general"] is not None:
        limit = start["general"] + results["tolerance"]
    heights = {row["name"]: row["general"] for row in results["candidates"]}
    words = f"general model + {results['tolerance']:g} tolerated"
    title = _title(results, "general", "down")
    charts = [_front_plot(results, heights, title, limit, words, results.get("front", ()))]
    mixed = {row["name"] for row in sets_of(results, "general")}
    for entry in results.get("sets", ()):
        name = entry["name"]
        if entry["role"] == "general" and name not in mixed:
            own = {row["name"]: row.get("values", {}).get(name) for row in results["candidates"]}
            title, tolerated = f"{name}, {entry['unit']} (down is better)", entry.get("tolerance")
            limit, words = own.get("general"), "general model"
            if limit is not None and tolerated is not None:
                limit, words = limit + tolerated, f"{words} + {tolerated:g} tolerated"
            charts.append(_front_plot(results, own, title, limit, words))
    note = (
        "Left and down is better. Figures of the validation sets, which the search saw: the best "
        "of many looks better here than it is."
    )
    if len(results.get("front", ())) > 1:
        note += " Dotted: the front, where nothing is better on both."
    if not all(row["qualified"] for row in results["candidates"]):
        note += " Hollow: loses too much, or dropped."
    legend = _legend(_looks(results["candidates"]), results["candidates"], results["chosen"])
    return PageSection(
        "front", "Domain against general", legend + "".join(charts) + paragraph(note, "note")
    )


def _front_plot(
    results: Mapping[str, Any],
    heights: Mapping[str, float | None],
    title: str,
    limit: float | None,
    words: str,
    front_names: Sequence[str] = (),
) -> str:
    rows = [r for r in results["candidates"] if len(finite([r["domain"], heights[r["name"]]])) == 2]
    by_name = {row["name"]: row for row in rows}
    height = {name: value for name, value in heights.items() if value is not None}
    plot = Plot(
        Axis.around([row["domain"] for row in rows], _title(results, "domain", "left")),
        Axis.around([*(height[row["name"]] for row in rows), limit], title),
        f"{len(rows)} candidates by their domain figure and {title}, on the validation sets; "
        f"chosen: {results['chosen']}. All figures stand in the table of candidates.",
        height=420,
    )
    if limit is not None:
        plot.rule(limit, words)
    front = sorted(
        (by_name[name] for name in front_names if name in by_name),
        key=lambda row: float(row["domain"]),
    )
    if len(front) > 1:
        plot.line(
            [row["domain"] for row in front],
            [height[row["name"]] for row in front],
            "s0 thin dotted",
        )
    looks = _looks(results["candidates"])
    # In order along x, as the arrow keys step.
    for row in sorted(rows, key=lambda item: (float(item["domain"]), str(item["name"]))):
        series, shape = looks[method_of(row)]
        hollow = "" if row["qualified"] and _status(row) == "complete" else " hollow"
        place = row["domain"], height[row["name"]]
        plot.mark(*place, series + hollow, shape=shape, tip=_tip(row, results))
    for name, label in _named(results).items():
        if name in by_name:
            place = by_name[name]["domain"], height[name]
            if name == results["chosen"]:
                plot.mark(*place, "ink open", shape="ring")
            plot.name(*place, label)
    return plot.html()


def _named(results: Mapping[str, Any]) -> dict[str, str]:
    names = {name: f"{name} model" if name == "general" else name for name in ENDPOINTS}
    knee = results.get("knee")
    if knee and knee not in names:
        names[knee] = "knee"
    chosen = results["chosen"]
    return {**names, chosen: "chosen" if chosen != knee else "chosen, knee"}


def sweep_section(results: Mapping[str, Any]) -> PageSection:
    """The plain interpolation between both models, with its intervals."""
    rows = sorted(results.get("sweep") or (), key=lambda row: float(row["alpha"]))
    if len(rows) < 2:
        return PageSection("sweep", "The plain sweep", "")
    charts = []
    for role in ("domain", "general"):
        what = f"{role}, {unit_of(results, role)}"
        limit = results["tolerance"] if role == "general" else None
        points = [(float(row["alpha"]), row[role]) for row in rows]
        charts.append(_sweep_plot(points, what, limit))
    for entry in results.get("sets", ()):  # general sets in units of their own
        name = entry["name"]
        known = [row for row in rows if name in row.get("sets", {})]
        points = [(float(row["alpha"]), row["sets"][name]) for row in known]
        if len(points) > 1:
            charts.append(_sweep_plot(points, f"{name}, {entry['unit']}", entry.get("tolerance")))
    beaten = results.get("beat_sweep")
    note = (
        "α is the specialist's weight in a plain average with the general model: 0 is the general "
        "model, 1 the specialist. Bands: 95 % intervals over the validation documents."
    )
    body = panels(*charts) + paragraph(note, "note") + _ladder(results)
    if beaten:
        body = paragraph(beaten["sentence"]) + body
    return PageSection("sweep", "The plain sweep", body)


def _ladder(results: Mapping[str, Any]) -> str:
    """Plain means as they were tested on all validation documents, a row a general set asked."""
    steps = results.get("ladder") or ()
    if not steps:
        return ""
    level = f"{results['confidence']:.0%} bound"
    rows: list[tuple[list[Cell | str], str]] = []
    for step in steps:
        for number, test in enumerate(step["tests"]):
            chosen = step["name"] == results["chosen"]
            cells: list[Cell | str] = [
                Cell(step["name"], step["alpha"]) if number == 0 else Cell(""),
                _number(step["domain_change"] if number == 0 else None, "+.4f"),
                f"{test['name']}, {test['unit']}",
                _number(test["loss"], "+.4f"),
                _number(test["bound"], "+.4f"),
                _number(test["tolerance"], "g"),
                "within" if test["is_within"] else "not shown to stay within",
            ]
            kind = "chosen" if chosen else "" if step["is_within"] else "out"
            rows.append((cells, kind))
    titles = ["plain mean", "domain", "general set", "loss", f"loss, {level}", "tolerated", ""]
    note = (
        "Tested from the general model upwards on all validation documents, each at the full level "
        "(the order is fixed beforehand), up to the first that is not shown to stay within a "
        "tolerance; then between that one and the last that was. Changes against the general "
        "model; the domain of those that were looked at for their gain."
    )
    return table("The sweep as a ladder", titles, rows) + paragraph(note, "note")


def _sweep_plot(
    points: Sequence[tuple[float, Mapping[str, float]]], what: str, tolerance: float | None
) -> str:
    """The figure of one role or set along α; where it may not rise beyond a tolerance, how far."""
    alphas = [alpha for alpha, _ in points]
    figures = [figure for _, figure in points]
    start = figures[0]["estimate"]
    limit = start + tolerance if tolerance is not None and alphas[0] == 0.0 else None
    shown = [figure[end] for figure in figures for end in ("low", "high")]
    plot = Plot(
        Axis(min(0.0, *alphas), max(1.0, *alphas), "α, weight of the specialist", 5),
        Axis.around([*shown, limit], f"{what} (down is better)"),
        f"{what} along the sweep, from {start:.4f} at α = {alphas[0]:g} "
        f"to {figures[-1]['estimate']:.4f} at α = {alphas[-1]:g}",
        height=240,
        nearest="x",
    )
    series = "s1"
    plot.band(alphas, [f["low"] for f in figures], [f["high"] for f in figures], series)
    plot.line(alphas, [f["estimate"] for f in figures], series)
    if limit is not None:
        plot.rule(limit, "tolerated")
    for alpha, figure in points:
        tip = (
            f"α = {alpha:g}\n{figure['estimate']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"
        )
        plot.mark(alpha, figure["estimate"], series, tip=tip)
    return plot.html()


def history_section(results: Mapping[str, Any]) -> PageSection:
    """What the search tried, in its order."""
    rows = sorted(
        (row for row in results["candidates"] if row.get("order") is not None),
        key=lambda row: int(row["order"]),
    )
    known = [row for row in rows if finite([row["domain"]])]
    if not known:
        return PageSection("history", "What the search tried", "")
    axis = Axis.around([row["domain"] for row in known], _title(results, "domain", "down"))
    orders = [int(row["order"]) for row in rows]
    plot = Plot(
        Axis(min(orders) - 0.5, max(orders) + 0.5, "order of trying", min(6, len(orders))),
        axis,
        f"{len(rows)} candidates in the order they were tried, by their domain figure",
        height=260,
    )
    best: list[tuple[int, float]] = []
    for row in known:
        better = not best or row["domain"] < best[-1][1]
        if row["qualified"] and _status(row) == "complete" and better:
            best.append((int(row["order"]), float(row["domain"])))
    if best:
        ends = [*best, (max(orders), best[-1][1])]
        plot.line([x for x, _ in ends], [y for _, y in ends], "ink thin", stepped=True)
    looks = _looks(results["candidates"])
    for row in rows:
        series, shape = looks[method_of(row)]
        is_known, status = bool(finite([row["domain"]])), _status(row)
        place = int(row["order"]), float(row["domain"]) if is_known else axis.low
        if status != "complete":
            plot.mark(*place, f"{series} open", shape="cross", tip=_tip(row, results))
        else:
            hollow = "" if row["qualified"] else " hollow"
            plot.mark(*place, series + hollow, shape=shape, tip=_tip(row, results))
    counts = {status: sum(_status(row) == status for row in rows) for status in _STATUSES}
    words = [f"{counts[status]} {word}" for status, word in _STATUSES.items() if counts[status]]
    note = f"{len(rows)} candidates: {', '.join(words)}. Line: the best so far that qualifies."
    if counts["dropped"] or counts["failed"]:
        note += " Crosses: dropped early by the race, or failed (at the bottom)."
    legend = _legend(looks, rows)
    return PageSection(
        "history", "What the search tried", legend + plot.html() + paragraph(note, "note")
    )


_STATUSES = {
    "complete": "scored on everything",
    "dropped": "dropped early, worse with confidence",
    "failed": "failed",
}


def candidates_section(results: Mapping[str, Any]) -> PageSection:
    """Every candidate in a table."""
    rows = results["candidates"]
    sets = [row["name"] for row in results.get("sets", ()) if len(results["sets"]) > 2]
    extra = [
        (title, name)
        for title, name in (("tokens", "tokens"), ("seconds", "seconds"), ("order", "order"))
        if any(row.get(name) is not None for row in rows)
    ]
    bounded = list(dict.fromkeys(name for row in rows for name in row.get("loss_bounds") or {}))
    titles = [
        "candidate",
        "domain",
        "general",
        *(f"{name}, {results['confidence']:.0%} bound of the loss" for name in bounded),
        "distance",
        "standing",
        *sets,
        *(title for title, _ in extra),
    ]

    def cells(row: Row) -> list[Cell | str]:
        values = row.get("values") or {}
        return [
            Cell(row["name"]),
            _number(row["domain"]),
            _number(row["general"]),
            *(_number((row.get("loss_bounds") or {}).get(name), "+.4f") for name in bounded),
            _number(row["distance"], ".2f"),
            _standing(row, results),
            *(_number(values.get(name)) for name in sets),
            *(_number(row.get(name), ",.1f" if name == "seconds" else ",.0f") for _, name in extra),
        ]

    def kind(row: Row) -> str:
        if row["name"] == results["chosen"]:
            return "chosen"
        return "" if row["qualified"] and _status(row) == "complete" else "out"

    ordered = sorted(rows, key=lambda row: (finite([row["domain"]]) or [1e9], str(row["name"])))
    note = (
        "Validation sets, which the search saw. Bound of the loss: a general set's figure is not "
        "further above the general model's than this, in its own unit, with the stated confidence. "
        "Distance: from the general model, as a share of "
        "the specialist's own."
    )
    if any(_status(row) == "dropped" for row in rows):
        note += (
            " A dropped candidate's figures are estimates, from the documents it was scored on, of "
            "what all would give; what is empty was not looked at."
        )
    body = table(
        f"{len(rows)} candidates, by their domain figure",
        titles,
        ((cells(row), kind(row)) for row in ordered),
        sortable=True,
    )
    return PageSection("candidates", "Every candidate", body + paragraph(note, "note"))


def _number(value: float | None, form: str = ".4f") -> Cell:
    return Cell(format(value, form), value) if finite([value]) else Cell("")


def _standing(row: Row, results: Mapping[str, Any]) -> str:
    if row["name"] == results["chosen"]:
        return "chosen"
    if (status := _status(row)) != "complete":
        return status
    return "within tolerance" if row["qualified"] else "loses too much"


def _status(row: Row) -> str:
    return str(row.get("status", "complete"))


def method_of(row: Row) -> str:
    """A candidate's method; the endpoints are their own."""
    first = str(row["name"]).split()[0]
    return first if first in ENDPOINTS else str(row.get("method") or first)


def _looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Series and shape of each method, in the order of their names."""
    methods = sorted({method_of(row) for row in rows} - set(ENDPOINTS))
    looks = {
        name: (f"s{1 + n % 5}", SERIES_SHAPES[n % len(SERIES_SHAPES)])
        for n, name in enumerate(methods)
    }
    return {**looks, **dict.fromkeys(ENDPOINTS, ("s0", "diamond"))}


def _legend(
    looks: Mapping[str, tuple[str, str]], rows: Sequence[Row], chosen: str | None = None
) -> str:
    methods = sorted({method_of(row) for row in rows} - set(ENDPOINTS))
    entries = [(name, *looks[name]) for name in methods]
    entries.append(("general model and specialist", *looks["general"]))
    if chosen is not None:  # its name is too long to stand beside a mark on a phone
        entries.append((f"chosen: {chosen}", "ink open", "circle"))
    return key(entries)


def _tip(row: Row, results: Mapping[str, Any]) -> str:
    parameters = row.get("parameters") or {}
    lines = [str(row["name"])]
    if any(str(name) not in lines[0] for name in parameters):
        lines += [f"{name} = {_plain(value)}" for name, value in parameters.items()]
    for role in ("domain", "general"):
        if finite([row[role]]):
            lines.append(f"{role} {row[role]:.4f}")
    for name, bound in (row.get("loss_bounds") or {}).items():
        if finite([bound]):
            lines.append(f"loss on {name} at most {bound:+.4f}")
    lines.append(_standing(row, results))
    return "\n".join(lines)


def _plain(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _title(results: Mapping[str, Any], role: str, better: str) -> str:
    return f"{role}, {unit_of(results, role)} ({better} is better)"
