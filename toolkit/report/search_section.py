"""What the search found: the front, the plain sweep, its course, and every candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolkit.report.charts import SERIES_SHAPES, Axis, Plot, finite, key
from toolkit.report.html import Cell, PageSection, panels, paragraph, table
from toolkit.report.verdict import ROLES
from toolkit.select.results import CandidateResult, FigureRole, LadderResult, MergeResults
from toolkit.statistics.interval import Interval, figure_text

ENDPOINTS = ("general", "specialist", "uniform mean")


def front_section(results: MergeResults) -> PageSection:
    """Domain against general, a mark a candidate; general sets in other units by themselves."""
    heights = {row.name: row.general for row in results.candidates}
    start = heights.get("general")
    tolerance = results.general_tolerance
    limit = None if start is None or tolerance is None else start + tolerance
    limit_words = f"general model + {tolerance:g} tolerated" if tolerance is not None else ""
    title = _title(results, "general", "down")
    charts = [_front_plot(results, heights, title, limit, limit_words, results.front)]
    in_the_mean = results.sets_of("general")
    for entry in results.sets:
        # Sets in the first one's unit share the chart above; any other has a scale of its own.
        if entry.role != "general" or entry in in_the_mean:
            continue
        heights = {row.name: row.values.get(entry.name) for row in results.candidates}
        if not finite(heights.values()):  # it has test items only
            continue
        limit, limit_words = heights.get("general"), "general model"
        if limit is not None and entry.tolerance is not None:
            limit += entry.tolerance
            limit_words = f"{limit_words} + {entry.tolerance:g} tolerated"
        title = f"{entry.name}, {entry.unit} (down is better)"
        charts.append(_front_plot(results, heights, title, limit, limit_words))
    note = (
        "Left and down is better. Figures of the validation sets, which the search saw: the best "
        "of many looks better here than it is."
    )
    if len(results.front) > 1:
        note += " Dotted: the front, where nothing is better on both."
    if not all(row.qualified for row in results.candidates):
        note += " Hollow: loses too much, or dropped."
    legend = _legend(_looks(results.candidates), results.candidates, results.chosen)
    return PageSection(
        "front", "Domain against general", legend + "".join(charts) + paragraph(note, "note")
    )


def _front_plot(
    results: MergeResults,
    heights: Mapping[str, float | None],
    title: str,
    limit: float | None,
    words: str,
    front_names: Sequence[str] = (),
) -> str:
    """Candidates by their domain figure and another one.

    Args:
        results: what the merge stage found.
        heights: the other figure by candidate.
        title: what the other figure is.
        limit: how high it may be.
        words: what the limit is.
        front_names: candidates that a line leads through.
    """
    places: dict[str, tuple[float, float]] = {}
    for row in results.candidates:
        # Failed candidates have no place, nor do dropped ones where the other set was never asked.
        figures = finite([row.domain, heights[row.name]])
        if len(figures) == 2:
            places[row.name] = figures[0], figures[1]
    plot = Plot(
        Axis.around([x for x, _ in places.values()], _title(results, "domain", "left")),
        Axis.around([*(y for _, y in places.values()), limit], title),
        f"{len(places)} candidates by their domain figure and {title}, on the validation sets; "
        f"chosen: {results.chosen}. All figures stand in the table of candidates.",
        height=420,
    )
    if limit is not None:
        plot.rule(limit, words)
    front = sorted((places[name] for name in front_names if name in places), key=lambda p: p[0])
    if len(front) > 1:
        plot.line([x for x, _ in front], [y for _, y in front], "s0 thin dotted")
    look_by_method = _looks(results.candidates)
    drawn_rows = [row for row in results.candidates if row.name in places]
    # In order along x, as the arrow keys step.
    for row in sorted(drawn_rows, key=lambda row: (places[row.name][0], row.name)):
        series, shape = look_by_method[method_of(row)]
        hollow = "" if _stays_within(row) else " hollow"
        plot.mark(*places[row.name], series + hollow, shape=shape, tip=_tip(row, results))
    # After all marks, so that names and the ring lie on top, and names avoid what is there.
    for name, label in _named(results).items():
        if name in places:
            if name == results.chosen:
                plot.mark(*places[name], "ink open", shape="ring")
            plot.name(*places[name], label)
    return plot.html()


def _named(results: MergeResults) -> dict[str, str]:
    label_by_name = {name: f"{name} model" if name == "general" else name for name in ENDPOINTS}
    knee, chosen = results.knee, results.chosen
    if knee and knee not in label_by_name:
        label_by_name[knee] = "knee"
    return {**label_by_name, chosen: "chosen" if chosen != knee else "chosen, knee"}


def sweep_section(results: MergeResults) -> PageSection:
    """The plain interpolation between both models, with its intervals."""
    sweep_points = sorted(results.sweep, key=lambda point: point.alpha)
    if len(sweep_points) < 2:
        return PageSection("sweep", "The plain sweep", "")
    domain_points = [(point.alpha, point.domain) for point in sweep_points]
    general_points = [(point.alpha, point.general) for point in sweep_points]
    charts = [
        _sweep_plot(domain_points, f"domain, {results.unit_of('domain')}", None),
        _sweep_plot(
            general_points, f"general, {results.unit_of('general')}", results.general_tolerance
        ),
    ]
    for entry in results.sets:  # general sets in units of their own
        set_points = [(p.alpha, p.sets[entry.name]) for p in sweep_points if entry.name in p.sets]
        if len(set_points) > 1:
            charts.append(_sweep_plot(set_points, f"{entry.name}, {entry.unit}", entry.tolerance))
    note = (
        "α is the specialist's weight in a plain average with the general model: 0 is the general "
        "model, 1 the specialist. Bands: 95 % intervals over the validation documents."
        if results.several is None
        else "α is the fraction of the specialists, all alike, in a plain average with the general "
        "model: 0 is the general model, 1 their uniform mean. Bands: 95 % intervals over the "
        "validation documents."
    )
    body = paragraph(results.beat_sweep.sentence) + panels(*charts)
    return PageSection(
        "sweep", "The plain sweep", body + paragraph(note, "note") + _ladder(results)
    )


def _ladder(results: MergeResults) -> str:
    """Plain means as they were tested on all validation documents, a row a general set asked."""
    if not results.ladder:
        return ""
    level = f"{results.confidence:.0%} bound"
    rows = [row for step in results.ladder for row in _ladder_rows(step, results.chosen)]
    titles = ["plain mean", "domain", "general set", "loss", f"loss, {level}", "tolerated", ""]
    note = (
        "Tested from the general model upwards on all validation documents, each at the full level "
        "(the order is fixed beforehand), up to the first that is not shown to stay within a "
        "tolerance; then between that one and the last that was. Changes against the general "
        "model; the domain of those that were looked at for their gain."
    )
    return table("The sweep as a ladder", titles, rows) + paragraph(note, "note")


def _ladder_rows(step: LadderResult, chosen: str) -> list[tuple[list[Cell | str], str]]:
    kind = "chosen" if step.name == chosen else "" if step.is_within else "out"
    rows: list[tuple[list[Cell | str], str]] = []
    for number, test in enumerate(step.tests):
        cells: list[Cell | str] = [
            Cell(step.name, step.alpha) if number == 0 else Cell(""),
            _number(step.domain_change if number == 0 else None, "+.4f"),
            f"{test.name}, {test.unit}",
            _number(test.loss, "+.4f"),
            _number(test.bound, "+.4f"),
            _number(test.tolerance, "g"),
            "within" if test.is_within else "not shown to stay within",
        ]
        rows.append((cells, kind))
    return rows


def _sweep_plot(
    points: Sequence[tuple[float, Interval]], what: str, tolerance: float | None
) -> str:
    """The figure of one role or set along α; where it may not rise beyond a tolerance, how far."""
    alphas = [alpha for alpha, _ in points]
    figures = [figure for _, figure in points]
    start_figure = figures[0].estimate
    # The tolerance counts from the general model: without it on the curve there is no line to draw.
    limit = start_figure + tolerance if tolerance is not None and alphas[0] == 0.0 else None
    interval_ends = [end for figure in figures for end in (figure.low, figure.high)]
    plot = Plot(
        Axis(min(0.0, *alphas), max(1.0, *alphas), "α, weight of the specialist", 5),
        Axis.around([*interval_ends, limit], f"{what} (down is better)"),
        f"{what} along the sweep, from {start_figure:.4f} at α = {alphas[0]:g} "
        f"to {figures[-1].estimate:.4f} at α = {alphas[-1]:g}",
        height=240,
        nearest="x",
    )
    series = "s1"
    plot.band(alphas, [f.low for f in figures], [f.high for f in figures], series)
    plot.line(alphas, [f.estimate for f in figures], series)
    if limit is not None:
        plot.rule(limit, "tolerated")
    for alpha, figure in points:
        tip = f"α = {alpha:g}\n{figure.words()}"
        plot.mark(alpha, figure.estimate, series, tip=tip)
    return plot.html()


def history_section(results: MergeResults) -> PageSection:
    """What the search tried, in its order."""
    rows = sorted(results.candidates, key=lambda row: row.order)
    domain_figures = [(row, row.domain) for row in rows if row.domain is not None]
    if not domain_figures:
        return PageSection("history", "What the search tried", "")
    axis = Axis.around([figure for _, figure in domain_figures], _title(results, "domain", "down"))
    orders = [row.order for row in rows]
    plot = Plot(
        Axis(min(orders) - 0.5, max(orders) + 0.5, "order of trying", min(6, len(orders))),
        axis,
        f"{len(rows)} candidates in the order they were tried, by their domain figure",
        height=260,
    )
    best_so_far: list[tuple[int, float]] = []
    for row, figure in domain_figures:
        if _stays_within(row) and (not best_so_far or figure < best_so_far[-1][1]):
            best_so_far.append((row.order, figure))
    if best_so_far:
        # Drawn on to the last candidate, to show that nothing better came.
        ends = [*best_so_far, (max(orders), best_so_far[-1][1])]
        plot.line([x for x, _ in ends], [y for _, y in ends], "ink thin", stepped=True)
    look_by_method = _looks(results.candidates)
    for row in rows:
        series, shape = look_by_method[method_of(row)]
        # A failed merge has no figure; its cross stands at the bottom.
        place = row.order, axis.low if row.domain is None else row.domain
        if row.status != "complete":
            plot.mark(*place, f"{series} open", shape="cross", tip=_tip(row, results))
        else:
            hollow = "" if row.qualified else " hollow"
            plot.mark(*place, series + hollow, shape=shape, tip=_tip(row, results))
    note = paragraph(_history_note(rows), "note")
    legend = _legend(look_by_method, rows)
    return PageSection("history", "What the search tried", legend + plot.html() + note)


def _history_note(rows: Sequence[CandidateResult]) -> str:
    counts = {status: sum(row.status == status for row in rows) for status in _STATUSES}
    words = [f"{counts[status]} {word}" for status, word in _STATUSES.items() if counts[status]]
    note = f"{len(rows)} candidates: {', '.join(words)}. Line: the best so far that qualifies."
    if counts["dropped"] or counts["failed"]:
        note += " Crosses: dropped early by the race, or failed (at the bottom)."
    return note


_STATUSES = {
    "complete": "scored on everything",
    "dropped": "dropped early, worse with confidence",
    "failed": "failed",
}


def candidates_section(results: MergeResults) -> PageSection:
    """Every candidate in a table."""
    rows = results.candidates
    validation_sets = [row.name for row in results.sets if row.items_validation]
    # With one set for each role the columns of the roles say it all.
    set_names = validation_sets if len(validation_sets) > 2 else []
    bounded_sets = list(dict.fromkeys(name for row in rows for name in row.loss_bounds))
    titles = [
        "candidate",
        *ROLES,
        *(f"{name}, {results.confidence:.0%} bound of the loss" for name in bounded_sets),
        "distance",
        "standing",
        *set_names,
        *("tokens", "seconds", "order"),
    ]

    def cells(row: CandidateResult) -> list[Cell | str]:
        return [
            Cell(row.name),
            _number(row.domain),
            _number(row.general),
            *(_number(row.loss_bounds.get(name), "+.4f") for name in bounded_sets),
            _number(row.distance, ".2f"),
            _standing(row, results),
            *(_number(row.values.get(name)) for name in set_names),
            _number(row.tokens, ",.0f"),
            _number(row.seconds, ",.1f"),
            _number(row.order, ",.0f"),
        ]

    def kind(row: CandidateResult) -> str:
        return "chosen" if row.name == results.chosen else "" if _stays_within(row) else "out"

    ordered = sorted(rows, key=lambda row: (1e9 if row.domain is None else row.domain, row.name))
    note = (
        "Validation sets, which the search saw. Bound of the loss: a general set's figure is not "
        "further above the general model's than this, in its own unit, with the stated confidence. "
        "Distance: from the general model, as a share of "
        "the specialist's own."
    )
    if any(row.status == "dropped" for row in rows):
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
    if value is None or not finite([value]):
        return Cell("")
    return Cell(figure_text(value, form), value)


def _stays_within(row: CandidateResult) -> bool:
    """Whether a candidate was scored in full and is within every tolerance."""
    return row.qualified and row.status == "complete"


def _standing(row: CandidateResult, results: MergeResults) -> str:
    if row.name == results.chosen:
        return "chosen"
    if row.status != "complete":
        return row.status
    return "within tolerance" if row.qualified else "loses too much"


def method_of(row: CandidateResult) -> str:
    """A candidate's method; the endpoints are their own."""
    return row.name if row.name in ENDPOINTS else row.method


def _looks(rows: Sequence[CandidateResult]) -> dict[str, tuple[str, str]]:
    """Series and shape of each method, in the order of their names."""
    # By name and not by order of trying, so that a method looks the same in both charts.
    methods = sorted({method_of(row) for row in rows} - set(ENDPOINTS))
    look_by_method = {
        name: (f"s{1 + n % 5}", SERIES_SHAPES[n % len(SERIES_SHAPES)])
        for n, name in enumerate(methods)
    }
    return {**look_by_method, **dict.fromkeys(ENDPOINTS, ("s0", "diamond"))}


def _legend(
    looks: Mapping[str, tuple[str, str]],
    rows: Sequence[CandidateResult],
    chosen: str | None = None,
) -> str:
    methods = sorted({method_of(row) for row in rows} - set(ENDPOINTS))
    legend_entries = [(name, *looks[name]) for name in methods]
    legend_entries.append(("general model and specialist", *looks["general"]))
    if chosen is not None:  # its name is too long to stand beside a mark on a phone
        legend_entries.append((f"chosen: {chosen}", "ink open", "circle"))
    return key(legend_entries)


def _tip(row: CandidateResult, results: MergeResults) -> str:
    tip_lines = [row.name]
    if any(name not in row.name for name in row.parameters):
        tip_lines += [f"{name} = {_plain(value)}" for name, value in row.parameters.items()]
    for role, figure in (("domain", row.domain), ("general", row.general)):
        if figure is not None:
            tip_lines.append(f"{role} {figure:.4f}")
    for name, bound in row.loss_bounds.items():
        if bound is not None:
            tip_lines.append(f"loss on {name} at most {bound:+.4f}")
    tip_lines.append(_standing(row, results))
    return "\n".join(tip_lines)


def _plain(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _title(results: MergeResults, role: FigureRole, better: str) -> str:
    return f"{role}, {results.unit_of(role)} ({better} is better)"
