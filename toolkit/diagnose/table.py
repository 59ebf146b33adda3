"""The tables that a diagnosis ends with, and the rows that its page shares with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.measure import Measurement
from rich.table import Table

from toolkit.progress import console, say

_WIDEST = 1000
"""Characters that a table may take: more than the figures of a dozen parents."""


def diagnosis_table(results: Mapping[str, Any]) -> None:
    """Print figures of layers and kinds, losses, and what is off in plain sentences."""
    table = Table(title=f"{results['merge']} against {', '.join(results['parents'])}")
    table.add_column("", no_wrap=True)
    for title in column_titles(results):
        table.add_column(title, justify="right", no_wrap=True)
    for name, rows in (("layers", results["layers"]), ("kinds", results["kinds"])):
        for row in rows:
            label = f"layer {row['name']}" if name == "layers" else row["name"]
            table.add_row(label, *cells(row, results), end_section=row is rows[-1])
    table.add_row("all", *cells(results["whole"], results))
    # As wide as its figures, whatever the terminal says: a cut number cannot be read.
    # The console would cut `width` to its own; a table's own width it leaves alone.
    options = console.options.update(max_width=_WIDEST)
    table.width = Measurement.get(console, options, table).maximum
    console.print(table, crop=False)
    say(legend(results))
    if results["losses"]:
        losses = Table(title="loss on a short text, lower is better")
        losses.add_column("")
        for title in ("bits per byte", "bits per token"):
            losses.add_column(title, justify="right")
        for loss in results["losses"]:
            losses.add_row(*loss_cells(loss))
        console.print(losses)
    for line in (*results["notes"], *results["summary"]):
        say(line)


def column_titles(results: Mapping[str, Any]) -> list[str]:
    """Columns of the table: those of trimming and of pairs only where there are any."""
    whole = results["whole"]
    return [
        "moved",
        *(f"task vector\n{label}" for label in whole["task_norms"]),
        *(f"cosine\n{pair}" for pair in whole["cosines"]),
        *(f"signs agree\n{pair}" for pair in whole["agreement"]),
        *(f"trimmed\n{label}" for label in whole["trimmed"]),
        *(f"distance\n{label}" for label in whole["distances"]),
    ]


def cells(row: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """One row of figures, in the order of `column_titles`."""
    whole = results["whole"]
    trimmed = [row["trimmed"].get(label) for label in whole["trimmed"]]
    return [
        _figure(row["moved"]),
        *(_figure(row["task_norms"][label]) for label in whole["task_norms"]),
        *(_signed(row["cosines"][pair]) for pair in whole["cosines"]),
        *(_percent(row["agreement"][pair]) for pair in whole["agreement"]),
        *(f"{_percent(t['entries'])}, {_percent(t['squares'])}" if t else "" for t in trimmed),
        *(_share(row["distances"][label]) for label in whole["distances"]),
    ]


def loss_cells(loss: Mapping[str, Any]) -> list[str]:
    if loss["bits_per_byte"] is None:
        return [loss["label"], "not scored", ""]
    return [loss["label"], f"{loss['bits_per_byte']:.4f}", f"{loss['bits_per_token']:.2f}"]


def legend(results: Mapping[str, Any]) -> str:
    """What the columns are."""
    words = [
        f"moved: norm of merge − {results['base']}, relative to the norm of {results['base']}; "
        "task vector: the same of a parent.",
        "distance: of the merge from a parent, relative to that between the parents.",
    ]
    if results["whole"]["trimmed"]:
        words.append("trimmed: share of the task vector's entries, and of its squared norm.")
    return " ".join(words)


def _figure(value: float | None) -> str:
    return (
        "" if value is None else f"{value:.4f}" if value >= 0.0001 or value == 0 else f"{value:.1e}"
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
