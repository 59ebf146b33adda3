"""The table that `make merge` ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from toolkit.progress import console, say

MODELS = (("general", "general model"), ("specialist", "specialist"), ("merge", "chosen merge"))


def outcome_table(results: Mapping[str, Any], folder: Path) -> None:
    """Print three models by two roles, what was chosen and why, and what it kept."""
    test = results["test"]
    table = Table(title="bits per byte on the test sets, lower is better (95 % intervals)")
    table.add_column("")
    for role in ("domain", "general"):
        table.add_column(f"{role} ({test[role]} documents)", justify="right")
    for key, title in MODELS:
        row = results["models"][key]
        cells = [interval(row["domain"]), interval(row["general"])]
        if key != "general":
            changes = [signed_interval(row[f"{role}_change"]) for role in ("domain", "general")]
            cells = [f"{cell}\n{change}" for cell, change in zip(cells, changes, strict=True)]
        table.add_row(title, *cells, end_section=True)
    # No narrower than its figures, whatever the terminal says: a wrapped number cannot be read.
    console.print(table, width=max(console.width, 79))
    say("Signed figures: change against the general model, paired by document.")
    say(results["reason"])
    for line in kept_lines(results):
        say(line)
    say(f"The model, merge.yaml and report.html are in {folder}.")


def kept_lines(results: Mapping[str, Any]) -> list[str]:
    """How much of the specialist's gain was kept, and how much of its loss recovered."""
    kept, recovered = results["gain_kept"], results["loss_recovered"]
    return [
        "The specialist has no domain gain to keep."
        if kept is None
        else f"Kept {_percent(kept)} of the specialist's domain gain.",
        "The specialist lost nothing on general text, so there was nothing to recover."
        if recovered is None
        else f"Recovered {_percent(recovered)} of the specialist's general loss.",
    ]


def interval(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.4f} ({value['low']:.4f} to {value['high']:.4f})"


def signed_interval(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"


def _percent(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.0%} ({value['low']:.0%} to {value['high']:.0%})"
