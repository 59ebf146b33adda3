"""The tables that a diagnosis ends with, and the rows that its page shares with them."""

from __future__ import annotations

from rich.measure import Measurement
from rich.table import Table

from toolkit.diagnose.figures import Diagnosis, DiagnosisFigures
from toolkit.diagnose.results import DiagnosisResults, Loss, pair_words
from toolkit.progress import console, say
from toolkit.select.results import AchievedRow

_WIDEST = 1000
"""Characters that a table may take: more than the figures of a dozen parents."""


def show_diagnosis(results: DiagnosisResults) -> None:
    """Print figures of layers and kinds, losses, and what is off in plain sentences."""
    diagnosis = results.diagnosis
    table = Table(title=f"{results.merge} against {', '.join(results.parents)}")
    table.add_column("", no_wrap=True)
    for title in column_titles(diagnosis):
        table.add_column(title, justify="right", no_wrap=True)
    for prefix, rows in (("layer ", diagnosis.layers), ("", diagnosis.kinds)):
        for row in rows:
            cells = figure_cells(row, diagnosis)
            table.add_row(f"{prefix}{row.name}", *cells, end_section=row is rows[-1])
    table.add_row("all", *figure_cells(diagnosis.whole, diagnosis))
    # As wide as its figures, whatever the terminal says: a cut number cannot be read.
    # The console would cut `width` to its own; a table's own width it leaves alone.
    options = console.options.update(max_width=_WIDEST)
    table.width = Measurement.get(console, options, table).maximum
    console.print(table, crop=False)
    say(legend(results))
    if results.losses:
        loss_table = Table(title="loss on a short text, lower is better")
        loss_table.add_column("")
        for title in ("bits per byte", "bits per token"):
            loss_table.add_column(title, justify="right")
        for loss in results.losses:
            loss_table.add_row(*loss_cells(loss))
        console.print(loss_table)
    # Layers are on the page; a terminal has the whole alone.
    for achieved in results.achieved:
        if achieved.where == "all":
            say(_achieved_line(achieved))
    for line in (*results.notes, *results.summary):
        say(line)


def _achieved_line(row: AchievedRow) -> str:
    figures = (("asked", row.asked), ("in float32", row.computed), ("stored", row.stored))
    words = [f"{word} {_number(value, '.4f')}" for word, value in figures if value is not None]
    return f"of the change of {row.model}: {', '.join(words) or 'nothing is known'}"


def column_titles(diagnosis: Diagnosis) -> list[str]:
    """Columns of the table: those of trimming and of pairs only where there are any."""
    whole = diagnosis.whole
    return [
        "moved",
        *(f"task vector\n{label}" for label in whole.task_norms),
        *(f"cosine\n{pair_words(pair)}" for pair in whole.cosines),
        *(f"signs agree\n{pair_words(pair)}" for pair in whole.agreement),
        *(f"trimmed\n{label}" for label in whole.trimmed),
        *(f"distance\n{label}" for label in whole.distances),
    ]


def figure_cells(row: DiagnosisFigures, diagnosis: Diagnosis) -> list[str]:
    """One row of figures, in the order of `column_titles`."""
    # A layer may hold no tensor that was trimmed.
    trimmed = [row.trimmed.get(label) for label in diagnosis.whole.trimmed]
    return [
        _norm(row.moved),
        *(_norm(norm) for norm in row.task_norms.values()),
        *(_number(cosine, "+.3f") for cosine in row.cosines.values()),
        *(_number(share, ".0%") for share in row.agreement.values()),
        *(
            f"{_number(t.entries, '.0%')}, {_number(t.squares, '.0%')}" if t else ""
            for t in trimmed
        ),
        *(_number(distance, ".3f") for distance in row.distances.values()),
    ]


def loss_cells(loss: Loss) -> list[str]:
    if loss.bits_per_byte is None:
        return [loss.label, "not scored", ""]
    return [loss.label, f"{loss.bits_per_byte:.4f}", f"{loss.bits_per_token:.2f}"]


def legend(results: DiagnosisResults) -> str:
    """What the columns are."""
    sentences = [
        f"moved: norm of merge − {results.base}, relative to the norm of {results.base}; "
        "task vector: the same of a parent.",
        "distance: of the merge from a parent, relative to that between the parents.",
    ]
    if results.diagnosis.whole.trimmed:
        sentences.append("trimmed: share of the task vector's entries, and of its squared norm.")
    return " ".join(sentences)


def _norm(value: float | None) -> str:
    """A norm with four decimals, or in powers of ten where they would all be zero."""
    return _number(value, ".4f" if not value or value >= 0.0001 else ".1e")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
