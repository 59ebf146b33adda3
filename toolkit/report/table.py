"""The table that `make merge` ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from toolkit.progress import console, say
from toolkit.report.verdict import (
    MODELS,
    ROLES,
    count_of,
    counts_of,
    interval,
    kept_lines,
    notes,
    signed_interval,
    unit_of,
)

_NARROWEST = 79
"""Characters: a number that is wrapped cannot be read, whatever the terminal says."""


def outcome_table(results: Mapping[str, Any], folder: Path) -> None:
    """Print three models by role and by set, what was chosen and why, and what it kept."""
    units = {unit_of(results, role) for role in ROLES}
    unit = f"{units.pop()} on the test sets" if len(units) == 1 else "test sets"
    table = Table(title=f"{unit}, lower is better (95 % intervals)")
    table.add_column("")
    for role in ROLES:
        own = f", {unit_of(results, role)}" if units else ""
        table.add_column(f"{role} ({counts_of(results, role)}{own})", justify="right")
    for key, title in MODELS:
        row = results["models"][key]
        cells = [interval(row[role]) for role in ROLES]
        if key != "general":
            changes = [signed_interval(row[f"{role}_change"]) for role in ROLES]
            cells = [f"{cell}\n{change}" for cell, change in zip(cells, changes, strict=True)]
        table.add_row(title, *cells, end_section=True)
    console.print(table, width=max(console.width, _NARROWEST))
    if shown := set_rows(results):
        _set_table(shown)
    say("Signed figures: change against the general model, paired by item.")
    for line in (results["reason"], *kept_lines(results), *notes(results)):
        say(line)
    say(f"The model, merge.yaml and report.html are in {folder}.")


def set_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, list[str]]]:
    """Set by set, where the roles alone do not say it all: name, role, unit, figures of the models.

    Nothing where there is one set a role and none that is only watched.
    """
    sets = results.get("sets", ())
    plain = sorted(row["role"] for row in sets) == sorted(ROLES)
    if plain or not all(results["models"][key].get("sets") for key, _ in MODELS):
        return []
    return [
        (
            row["name"],
            f"{row['role']}, {count_of(row)}{_may_lose(row)}",
            row["unit"],
            [interval(results["models"][key]["sets"][row["name"]]) for key, _ in MODELS],
        )
        for row in sets
        if all(row["name"] in results["models"][key]["sets"] for key, _ in MODELS)
    ]


def _may_lose(row: Mapping[str, Any]) -> str:
    limit = row.get("tolerance")
    return "" if limit is None else f", may lose {limit:g}"


def _set_table(rows: Sequence[tuple[str, str, str, list[str]]]) -> None:
    table = Table(title="set by set; watched sets take no part in the choice")
    table.add_column("")
    for _, title in MODELS:
        table.add_column(title, justify="right")
    for name, role, unit, figures in rows:
        # An estimate a line, its interval below it: three models fit an ordinary terminal.
        cells = [figure.replace(" (", "\n(") for figure in figures]
        table.add_row(f"{name}, {unit}\n{role}", *cells, end_section=True)
    console.print(table, width=max(console.width, _NARROWEST))
