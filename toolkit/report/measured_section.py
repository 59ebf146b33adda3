"""What the test sets say: three models with intervals, document by document, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pydantic import BaseModel, ConfigDict, Field

from toolkit.report.charts import Axis, Plot
from toolkit.report.html import Cell, PageSection, panels, paragraph, table
from toolkit.report.table import set_rows
from toolkit.report.verdict import MODELS, ROLES, counts_of, mean_title, model_columns
from toolkit.select.results import AchievedRow, DocumentFigures, FigureRole, MergeResults
from toolkit.statistics.interval import Interval, decimals


class PromptAnswers(BaseModel):
    """A prompt answered by the three models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    general: str
    specialist: str = ""
    """Empty where there are several, whose mean is on no disk."""

    merge: str
    specialists: dict[str, str] = Field(default_factory=dict)
    """Answers of several specialists by name."""

    def by_title(self, chosen: str) -> dict[str, str]:
        """Answers by what a reader calls the models."""
        # A mean of several specialists was never written, so there is nobody to ask: each answers
        # for itself.
        specialists = self.specialists or {"specialist": self.specialist}
        titles = dict(MODELS)
        merge = {f"{titles['merge']}: {chosen}": self.merge}
        return {titles["general"]: self.general, **specialists, **merge}


def achieved_section(rows: Sequence[AchievedRow]) -> PageSection:
    """What the merge asks of each tuned model's change, and what is stored of it."""
    cells = [
        (
            [
                row.where,
                row.model,
                *("" if v is None else f"{v:.4f}" for v in (row.asked, row.computed, row.stored)),
            ],
            "chosen" if row.where == "all" else "",
        )
        for row in rows
    ]
    titles = ["", "change of", "asked", "in float32", "stored"]
    body = table("Fraction of the change that is in the merge", titles, cells) + paragraph(
        "The projection of merge − base on the model's own change, over all entries; of several "
        "models, the fractions that fit together best. Methods that thin out or turn a change ask "
        "for no fraction: there the merge in float32 says what was meant.",
        "note",
    )
    return PageSection("achieved", "Asked and stored", body if rows else "")


def models_section(results: MergeResults) -> PageSection:
    """Changes against the general model as a chart, and all figures as a table."""
    titles = [""]
    for role in ROLES:
        titles += [f"{role}, {results.unit_of(role)} ({counts_of(results, role)})", "change"]
    rows: list[tuple[list[Cell | str], str]] = []
    for column in model_columns(results):
        is_merge = column.kind == "merge"
        cells: list[Cell | str] = [Cell(column.title, detail=results.chosen if is_merge else "")]
        for role in ROLES:
            cells.append(_figure(column.figures.figure(role)))
            is_start = column.kind == "general"
            cells.append("" if is_start else _signed_figure(column.figures.change(role)))
        rows.append((cells, "chosen" if is_merge else ""))
    times = results.test_scorings
    scored_words = "scored once" if times == 1 else f"scored {times} times"
    body = (
        panels(*(_change_chart(results, role) for role in ROLES))
        + table(f"Test sets, {scored_words}; lower is better, 95 % intervals", titles, rows)
        + _sets(results)
        + _costs(results)
        + paragraph(
            "Intervals: over groups of items, Student's t, moved outwards by the skewness that "
            "the groups show and by what so few may hide. Changes are paired: both models on the "
            "same items, against the general model. What decides is bounded in the same way.",
            "note",
        )
    )
    return PageSection("test", "Test sets", body)


def _figure(value: Interval) -> Cell:
    return Cell(decimals(value.estimate), value.estimate, f"({value.ends()})")


def _signed_figure(change: Interval) -> Cell:
    return Cell(decimals(change.estimate, sign="+"), change.estimate, f"({change.ends(sign='+')})")


def _sets(results: MergeResults) -> str:
    rows: list[tuple[list[Cell | str], str]] = [
        ([Cell(row.name, detail=f"{row.role}, {row.unit}"), *map(_set_figure, row.figures)], "")
        for row in set_rows(results)
    ]
    if not rows:
        return ""
    titles = ["", *(column.title for column in model_columns(results))]
    return table("Set by set; sets with the role watch take no part in the choice", titles, rows)


def _costs(results: MergeResults) -> str:
    """What each of several specialists does to every set, its own and the others'."""
    several = results.several
    if several is None:
        return ""
    names = list(several.specialists[0].figures.set_changes)
    rows: list[tuple[list[Cell | str], str]] = [
        (
            [
                Cell(one.name, detail=f"its own: {', '.join(one.sets)}"),
                *(_signed_figure(one.figures.set_changes[name]) for name in names),
            ],
            "",
        )
        for one in several.specialists
    ]
    mean = results.models.specialist.set_changes
    merge = results.models.merge.set_changes
    rows.append(([mean_title(several), *(_signed_figure(mean[name]) for name in names)], ""))
    rows.append((["chosen merge", *(_signed_figure(merge[name]) for name in names)], "chosen"))
    return table(
        "What each specialist costs the others: change against the general model on every set",
        ["", *names],
        rows,
    )


def _set_figure(value: Interval) -> Cell:
    shown_figure = decimals(value.estimate)
    return Cell(shown_figure, float(shown_figure), f"({value.ends()})")


def _change_chart(results: MergeResults, role: FigureRole) -> str:
    """Two models' changes against the general model, as dots with their intervals."""
    # The last two columns: of several specialists only their mean stands beside the merge.
    shown_changes = [
        (column.title, column.figures.change(role)) for column in model_columns(results)[-2:]
    ]
    interval_ends = [end for _, change in shown_changes for end in (change.low, change.high)]
    limit = results.general_tolerance if role == "general" else 0.0
    title = f"{role}: change in {results.unit_of(role)} (left is better)"
    words = "; ".join(f"{model} {change.words(sign='+')}" for model, change in shown_changes)
    plot = Plot(
        Axis.around([*interval_ends, 0.0, limit], title),
        Axis(0.0, 2.0, "", 0),
        f"{role}, change against the general model: {words}",
        height=110,
    )
    plot.upright(0.0)
    for number, (model, change) in enumerate(shown_changes):
        series, y = ("s2", "s1")[number], (1.4, 0.4)[number]
        plot.line([change.low, change.high], [y, y], series)
        tip = f"{model}\n{change.words(sign='+')}"
        plot.mark(change.estimate, y, series, shape=("triangle", "circle")[number], tip=tip)
        plot.caption(y, model, series)
    return plot.html()


def documents_section(results: MergeResults) -> PageSection:
    """Document by document: how the merge differs from the general model and the specialist."""
    set_parts = []
    specialist = "specialist" if results.several is None else mean_title(results.several)
    for name in dict.fromkeys(row.set for row in results.documents):
        rows = [row for row in results.documents if row.set == name]
        charts = (
            _difference_chart(name, "general model", [(row, row.general) for row in rows]),
            _difference_chart(name, specialist, [(row, row.specialist) for row in rows]),
        )
        heading = escape(f"{name} ({rows[0].role})")
        set_parts.append(f"<h3>{heading}</h3>{panels(*charts)}")
    if not set_parts:
        return PageSection("documents", "Document by document", "")
    note = (
        "A bar a document of the test sets, sorted; below zero the merge is better. "
        "Whether a mean rests on many documents or on a few can be seen here."
    )
    return PageSection(
        "documents", "Document by document", paragraph(note, "note") + "".join(set_parts)
    )


def _difference_chart(
    name: str, against: str, pairs: Sequence[tuple[DocumentFigures, float]]
) -> str:
    """What the merge's figure of each document is above another model's, sorted.

    Args:
        name: name of the set.
        against: name of the other model.
        pairs: documents, each with the other model's figure.
    """
    # Ties by id: the same results give the same bytes.
    ordered_pairs = sorted(pairs, key=lambda pair: (pair[0].merge - pair[1], pair[0].id))
    values = [row.merge - other for row, other in ordered_pairs]
    num_better = sum(value < 0.0 for value in values)
    share_words = f"on {num_better} of {len(values)}"
    plot = Plot(
        Axis(0.0, float(len(values)), "", 0),
        Axis.around([*values, 0.0], f"merge − {against}: better {share_words}"),
        f"{name}: the merge is better than the {against} {share_words} documents",
        height=200,
        nearest="x",
    )
    # Sorted, so what is better comes first and has a color of its own.
    plot.bars(values[:num_better], "s1")
    plot.bars(values[num_better:], "s2", first=float(num_better))
    for number, ((row, other), value) in enumerate(zip(ordered_pairs, values, strict=True)):
        tip = f"{row.id}\n{decimals(value, sign='+')}\nmerge {row.merge:.4f}, {against} {other:.4f}"
        plot.target(number + 0.5, value, tip)
    return plot.html()


def answers_section(answers: Sequence[PromptAnswers], chosen: str) -> PageSection:
    """The same prompts answered by the three models."""
    parts = []
    for row in answers:
        columns = "".join(
            f"<div><dt>{escape(title)}</dt><dd>{escape(text) or '(nothing)'}</dd></div>"
            for title, text in row.by_title(chosen).items()
        )
        parts.append(f'<div class="answer"><p>{escape(row.prompt)}</p><dl>{columns}</dl></div>')
    if not parts:
        return PageSection("answers", "Side by side", "")
    note = (
        "The same prompts to all three, greedy, cut off after a few dozen tokens. Examples show "
        "what the figures are about; they prove nothing."
    )
    return PageSection("answers", "Side by side", paragraph(note, "note") + "".join(parts))
