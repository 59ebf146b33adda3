"""The comparison as one self-contained page: every way beside the line of plain merges."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from toolkit.compare.config import MergeKind
from toolkit.compare.results import (
    ComparedSet,
    ComparisonResults,
    LinePoint,
    SeedOfWay,
    WayFigures,
)
from toolkit.compare.table import (
    COST_TITLES,
    NOT_KNOWN,
    cost_cells,
    kept_words,
    points,
    sentence_of,
    summary,
)
from toolkit.report.charts import Axis, Plot, finite, key
from toolkit.report.html import (
    Cell,
    PageSection,
    folded,
    panels,
    paragraph,
    table,
    write_document,
)
from toolkit.statistics.interval import Interval, decimals

LOOKS: dict[MergeKind, tuple[str, str]] = {
    "none": ("s1", "circle"),
    "plain": ("s2", "square"),
    "search": ("s3", "triangle"),
    "heal": ("s4", "down"),
}
"""Color and shape of each kind of merge."""

_KIND_WORDS: dict[MergeKind, str] = {
    "none": "specialist, no merge",
    "plain": "best plain mean",
    "search": "the search's choice",
    "heal": "healed",
}


def write_page(results: ComparisonResults, path: Path) -> None:
    """Write the page. Same results, same bytes."""
    title = f"{results.recipe}: ways compared"
    opening = (
        f"<h1>{escape(title)}</h1>"
        + paragraph(_verdict(results), "verdict")
        + (paragraph(results.description, "note") if results.description else "")
        + paragraph(summary(results), "note")
        + f'<div class="notes">{"".join(paragraph(one, "note") for one in results.remarks)}</div>'
    )
    sections = [
        _line_section(results),
        _ways_section(results),
        _costs_section(results),
        _seeds_section(results),
        _again_section(results),
    ]
    write_document(path, title, opening, sections)


def _verdict(results: ComparisonResults) -> str:
    """Which ways leave the line, in one sentence."""
    lines = results.lines()
    if not lines:
        return "There is no line of plain merges to be held against."

    def titles_at(standing: str) -> list[str]:
        return [
            way.title
            for way in results.figures
            # Only on all sets: whatever leaves the line on one may pay for it on another.
            if all(way.sets[one.name].standing == standing for one in lines)
        ]

    sets = " and ".join(one.name for one in lines)
    above, below = titles_at("above"), titles_at("below")
    words = f"Above the line of plain merges on {sets}: {', '.join(above) or 'none'}."
    return words + (f" Below it: {', '.join(below)}." if below else "")


def _line_section(results: ComparisonResults) -> PageSection:
    """A chart per set with a line: what is lost there against what is kept of the gain."""
    charts = [_chart(results, one) for one in results.lines()]
    kinds = {way.merge for way in results.figures}
    legend = key(
        [
            *((_KIND_WORDS[kind], *look) for kind, look in LOOKS.items() if kind in kinds),
            (f"plain means of {results.reference}", "s0", "diamond"),
        ]
    )
    note = (
        "Further left less is lost, further up more is kept; numbers are those of the table. A way "
        "above the line keeps more than the plain mean of the reference that loses as much."
    )
    body = panels(*charts) + legend + paragraph(note, "note") if charts else ""
    return PageSection("line", "The line of plain merges", body)


def _chart(results: ComparisonResults, one: ComparedSet) -> str:
    places = [(way.sets[one.name].change, way.gain_kept) for way in results.figures]
    line = [(point.set_changes[one.name], point.gain_kept) for point in results.line]
    # Without a gain of the reference there is no fraction, and the point is left out.
    kept = [100.0 * k.estimate for _, k in (*places, *line) if k is not None]
    plot = Plot(
        Axis.around([0.0, *(c.estimate for c, _ in (*places, *line))], f"{one.name}, {one.unit}"),
        Axis.around([0.0, *kept], "gain kept, %"),
        f"Change of {one.name} against the gain kept, for {len(places)} ways and the line of plain "
        "merges. All figures stand in the table of ways.",
        height=420,
    )
    shown_points = [point for point in results.line if point.gain_kept is not None]
    # The general model begins the line: it loses nothing and keeps nothing.
    xs = [0.0, *(point.set_changes[one.name].estimate for point in shown_points)]
    ys = [0.0, *(100.0 * p.gain_kept.estimate for p in shown_points if p.gain_kept is not None)]
    plot.line(xs, ys, "s0 thin")
    plot.mark(0.0, 0.0, "s0", shape="diamond", tip="general model")
    for point in shown_points:
        if point.gain_kept is not None:
            plot.mark(
                point.set_changes[one.name].estimate,
                100.0 * point.gain_kept.estimate,
                "s0",
                shape="diamond",
                tip=_line_tip(point, one),
            )
    numbered = list(enumerate(results.figures, start=1))
    # In order along x, as the arrow keys step.
    for number, way in sorted(numbered, key=lambda pair: pair[1].sets[one.name].change.estimate):
        if way.gain_kept is None:
            continue
        place = way.sets[one.name].change.estimate, 100.0 * way.gain_kept.estimate
        series, shape = LOOKS[way.merge]
        plot.mark(*place, series, shape=shape, tip=_tip(way, one, number))
        plot.name(*place, str(number))
    return plot.html()


def _line_tip(point: LinePoint, one: ComparedSet) -> str:
    change = point.set_changes[one.name].words(3, "+")
    name = f"plain mean, α {point.alpha:g}" if point.alpha < 1.0 else "specialist"
    return f"{name}\ngain kept {kept_words(point.gain_kept)} %\n{one.name} {change}"


def _tip(way: WayFigures, one: ComparedSet, number: int) -> str:
    standing = way.sets[one.name]
    distance = "" if standing.distance is None else f"\n{standing.standing} the line: "
    distance += "" if standing.distance is None else points(standing.distance)
    return (
        f"{number}: {way.title}\ngain kept {kept_words(way.gain_kept)} %\n"
        f"{one.name} {standing.change.words(3, '+')}{distance}"
    )


def _ways_section(results: ComparisonResults) -> PageSection:
    """All figures of all ways."""
    titles = ["way", f"domain, {results.domain_unit}", "gain kept, %"]
    for one in results.sets:
        if one.role != "domain":
            titles.append(f"{one.name}, {one.unit}" + (" (watched)" if one.role == "watch" else ""))
            titles += [f"from the line on {one.name}"] if one.has_line else []
    rows: list[tuple[list[Cell | str], str]] = []
    for number, way in enumerate(results.figures, start=1):
        kept = way.gain_kept
        cells: list[Cell | str] = [
            Cell(f"{number} {way.title}", value=float(number)),
            _signed(way.domain_change),
            Cell(NOT_KNOWN) if kept is None else Cell(kept_words(kept), value=kept.estimate),
        ]
        for one in results.sets:
            if one.role == "domain":
                continue
            standing = way.sets[one.name]
            cells.append(_signed(standing.change))
            if standing.distance is not None:
                words, value = str(standing.standing), standing.distance.estimate
                cells.append(Cell(words, value=value, detail=points(standing.distance)))
        is_above = bool(results.lines()) and all(
            way.sets[one.name].standing == "above" for one in results.lines()
        )
        rows.append((cells, "chosen" if is_above else ""))
    caption = (
        f"Changes against the general model, below zero where something is gained; "
        f"{results.confidence:.0%} intervals"
    )
    body = table(caption, titles, rows, sortable=True) + paragraph(
        "Distances are in points of the reference specialist's gain: gain kept minus that of the "
        "plain mean of the reference which loses as much on that set. Marked: above the line on "
        "every set that has one.",
        "note",
    )
    return PageSection("ways", "Every way", body)


def _signed(change: Interval) -> Cell:
    return Cell(decimals(change.estimate, 3, "+"), change.estimate, change.ends(3, "+"))


def _costs_section(results: ComparisonResults) -> PageSection:
    rows: list[tuple[list[Cell | str], str]] = [
        ([Cell(way.name, detail=_settings_words(way.settings)), *cost_cells(way.costs)], "")
        for way in results.ways
    ]
    body = table("A mean over seeds, as the stages noted it", ["way", *COST_TITLES], rows)
    notes = [
        f"{way.name} shares the specialist of {way.trains_as}; it was trained once."
        for way in results.ways
        if way.trains_as is not None
    ]
    notes += [f"{way.name}: {way.note}" for way in results.ways if way.note]
    return PageSection(
        "costs", "What each way takes", body + "".join(paragraph(one, "note") for one in notes)
    )


def _settings_words(settings: dict[str, object]) -> str:
    """What a way changes in the recipe, in one line.

    >>> _settings_words({"train": {"schedule": {"peak_lr": 5e-05}}})
    'train.schedule.peak_lr: 5e-05'
    """
    if not settings:
        return "the recipe as it stands"

    def lines(node: object, path: str) -> list[str]:
        if isinstance(node, dict) and node:
            return [line for k, v in node.items() for line in lines(v, f"{path}.{k}".lstrip("."))]
        return [f"{path}: {json.dumps(node)}"]

    return "; ".join(lines(settings, ""))


def _seeds_section(results: ComparisonResults) -> PageSection:
    """What each seed gave, where there are several."""
    titles = ["way", *(f"seed {seed}" for seed in results.seeds)]
    general = results.general_sets()
    rows: list[tuple[list[Cell | str], str]] = [
        (
            [
                way.title,
                *(_seed_cell(way.seeds[str(seed)], general) for seed in results.seeds),
            ],
            "",
        )
        for way in results.figures
    ]
    set_names = ", ".join(one.name for one in general)
    caption = f"Gain kept of the seed's own reference specialist; then {set_names} and the merge"
    return PageSection("seeds", "Seed by seed", table(caption, titles, rows))


def _seed_cell(seed: SeedOfWay, general: tuple[ComparedSet, ...]) -> Cell:
    # What is not known is stored as null, which must not be formatted as a number.
    (kept,) = finite([seed.gain_kept]) or [float("nan")]
    words = NOT_KNOWN if seed.gain_kept is None else f"{kept:.0%}"
    changes = " ".join(decimals(seed.set_changes[one.name], 3, "+") for one in general)
    return Cell(words, seed.gain_kept, f"{changes}; {seed.candidate}")


def _again_section(results: ComparisonResults) -> PageSection:
    times = results.test_scorings
    scored = "once, by this comparison" if times == 1 else f"{times} times, this one included"
    body = (
        paragraph(f"Made by `{results.command}`.")
        + paragraph(
            "Each way's merges were chosen on validation sets, as `make merge` does; the test sets "
            f"of the reference way were scored {scored}. Whoever takes the best way of this table "
            "has chosen on test sets: its figures are then the best of several.",
            "note",
        )
        + folded("Where every way stands", _standings(results))
    )
    return PageSection("again", "How it was made", body)


def _standings(results: ComparisonResults) -> str:
    return "\n".join(f"{way.title}: {sentence_of(results, way)}" for way in results.figures)
