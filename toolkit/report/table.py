"""The table that `make merge` ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from toolkit.progress import console, say
from toolkit.report.verdict import (
    MODELS,
    ROLES,
    count_of,
    counts_of,
    kept_lines,
    model_columns,
    notes,
)
from toolkit.select.results import MergeResults, SetResult, SeveralResults
from toolkit.statistics.interval import Interval

_NARROWEST = 79
"""Characters: a number that is wrapped cannot be read, whatever the terminal says."""


def outcome_table(results: MergeResults, folder: Path) -> None:
    """Print three models by role and by set, what was chosen and why, and what it kept."""
    units = {results.unit_of(role) for role in ROLES}
    # Taken out of the set: one unit for all stands in the title, and `units` is then empty for the
    # columns below.
    title_unit = f"{units.pop()} on the test sets" if len(units) == 1 else "test sets"
    table = Table(title=f"{title_unit}, lower is better (95 % intervals)")
    table.add_column("")
    for role in ROLES:
        role_unit = f", {results.unit_of(role)}" if units else ""
        table.add_column(f"{role} ({counts_of(results, role)}{role_unit})", justify="right")
    for column in model_columns(results):
        cells = [column.figures.figure(role).words() for role in ROLES]
        if column.kind != "general":
            changes = [column.figures.change(role).words(sign="+") for role in ROLES]
            cells = [f"{cell}\n{change}" for cell, change in zip(cells, changes, strict=True)]
        table.add_row(column.title, *cells, end_section=True)
    console.print(table, width=max(console.width, _NARROWEST))
    if results.several is not None:
        _table_of_several(results)
        _cost_table(results.several)
    elif rows := set_rows(results):
        _set_table(rows)
    say("Signed figures: change against the general model, paired by item.")
    for line in (results.reason, *kept_lines(results), *notes(results)):
        say(line)
    say(f"The model, merge.yaml and report.html are in {folder}.")


@dataclass(frozen=True)
class SetRow:
    """A set in the table of all sets.

    Attributes:
        name: name of the set.
        role: its role, size and tolerance, in words.
        unit: unit of the figures.
        figures: figures of the models, in the order of `model_columns`.
    """

    name: str
    role: str
    unit: str
    figures: tuple[Interval, ...]


def set_rows(results: MergeResults) -> list[SetRow]:
    """Set by set, where the roles alone do not say it all: nothing where there is one set per role
    and none that is only watched."""
    if sorted(row.role for row in results.sets) == sorted(ROLES):
        return []
    figures_by_model = [column.figures.sets for column in model_columns(results)]
    return [
        SetRow(
            row.name,
            f"{row.role}, {count_of(row)}{_may_lose(row)}",
            row.unit,
            tuple(by_set[row.name] for by_set in figures_by_model),
        )
        for row in results.sets
        # A set may have validation items only; the table is of test figures.
        if all(row.name in by_set for by_set in figures_by_model)
    ]


def _may_lose(row: SetResult) -> str:
    return "" if row.tolerance is None else f", may lose {row.tolerance:g}"


def _set_table(rows: Sequence[SetRow]) -> None:
    table = Table(title="set by set; watched sets take no part in the choice")
    table.add_column("")
    for _, title in MODELS:
        table.add_column(title, justify="right")
    for row in rows:
        # An estimate a line, its interval below it: three models fit an ordinary terminal.
        cells = [figure.words().replace(" (", "\n(") for figure in row.figures]
        table.add_row(f"{row.name}, {row.unit}\n{row.role}", *cells, end_section=True)
    console.print(table, width=max(console.width, _NARROWEST))


def _table_of_several(results: MergeResults) -> None:
    """A row for each set, a column for each model: figures, and changes below them. Intervals are
    on the page, where there is room."""
    columns = model_columns(results)
    table = Table(title="set by set, and the change against the general model")
    table.add_column("")
    for column in columns:
        table.add_column(column.title, justify="right")
    for row in results.sets:
        if not all(row.name in column.figures.sets for column in columns):
            continue
        cells = [f"{columns[0].figures.sets[row.name].estimate:.4f}"]
        for column in columns[1:]:
            change = column.figures.set_changes[row.name].estimate
            cells.append(f"{column.figures.sets[row.name].estimate:.4f}\n{change:+.4f}")
        title = f"{row.name}, {row.unit}\n{row.role}, {count_of(row)}{_may_lose(row)}"
        table.add_row(title, *cells, end_section=True)
    console.print(table, width=max(console.width, _NARROWEST, 26 + 12 * len(columns)))


def _cost_table(several: SeveralResults) -> None:
    """What each specialist does to the sets of the others."""
    names = list(several.specialists[0].figures.set_changes)
    table = Table(title="what each specialist costs the others: change of every set, * its own")
    for title in ("", *names):
        table.add_column(title, justify="right" if title else "left")
    for one in several.specialists:
        cells = [
            one.figures.set_changes[name].words(3, "+").replace(" (", "\n(")
            + (" *" if name in one.sets else "")
            for name in names
        ]
        table.add_row(one.name, *cells, end_section=True)
    console.print(table, width=max(console.width, _NARROWEST, 12 + 21 * len(names)))
