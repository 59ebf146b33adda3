"""The report as one self-contained HTML page: opens anywhere, offline, and can be mailed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from toolkit.report.again import Again, again_section
from toolkit.report.html import paragraph, write_document
from toolkit.report.measured_section import (
    PromptAnswers,
    achieved_section,
    answers_section,
    documents_section,
    models_section,
)
from toolkit.report.search_section import (
    candidates_section,
    front_section,
    history_section,
    sweep_section,
)
from toolkit.report.training_section import TrainingRow, training_section
from toolkit.report.verdict import notes, verdict
from toolkit.select.results import MergeResults
from toolkit.statistics.interval import Interval, decimals


def write_page(
    results: MergeResults,
    path: Path,
    *,
    merge_yaml: str,
    training: Sequence[TrainingRow] = (),
    answers: Sequence[PromptAnswers] = (),
    again: Again | None = None,
) -> None:
    """Write the page; a part whose figures are missing is left out. Same inputs, same bytes.

    Args:
        results: what the merge stage found.
        path: path of the `.html` file.
        merge_yaml: text of the chosen merge.
        training: rows of the cpt stage's `metrics.jsonl`.
        answers: the same prompts answered by the three models.
        again: what it takes to make the merge again.
    """
    title = f"{results.recipe}: which merge, and what it keeps"
    verdict_sentences = " ".join(verdict(results))
    opening = (
        f"<h1>{escape(title)}</h1>"
        + paragraph(verdict_sentences, "verdict")
        + (paragraph(results.description, "note") if results.description else "")
        + _figures(results)
    )
    sections = [
        models_section(results),
        front_section(results),
        sweep_section(results),
        history_section(results),
        training_section(training),
        documents_section(results),
        answers_section(answers, results.chosen),
        achieved_section(results.achieved),
        candidates_section(results),
        again_section(again, merge_yaml),
    ]
    write_document(path, title, opening, sections)


def _figures(results: MergeResults) -> str:
    """The few figures that a hurried reader takes away."""
    merge = results.models.merge
    rows = [
        ("change on the domain", *_change(merge.domain_change), results.unit_of("domain")),
        ("change on general sets", *_change(merge.general_change), results.unit_of("general")),
    ]
    # What fades on a set in another unit is in no mean, and must not be overlooked.
    rows += [
        (f"change on {row.name}", *_change(change), row.unit)
        for row, change in results.lost_sets("merge")
        if row not in results.sets_of("general")
    ]
    if results.gain_kept is not None:
        rows.append(("of the gain kept", *_fraction(results.gain_kept), ""))
    if results.loss_recovered is not None:
        rows.append(("of the loss recovered", *_fraction(results.loss_recovered), ""))
    num_qualified = sum(row.qualified for row in results.candidates)
    rows.append(
        ("candidates tried", str(len(results.candidates)), f"{num_qualified} within tolerance", "")
    )
    figure_items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}"
        f"<small>{escape(' '.join((detail, unit)).strip())}</small></dd></div>"
        for name, figure, detail, unit in rows
    )
    note_lines = "".join(paragraph(line, "note") for line in (results.reason, *notes(results)))
    return f'<dl class="figures">{figure_items}</dl><div class="notes">{note_lines}</div>'


def _change(change: Interval) -> tuple[str, str]:
    return decimals(change.estimate, 3, "+"), change.ends(3, "+")


def _fraction(share: Interval) -> tuple[str, str]:
    return f"{share.estimate:.0%}", f"{share.low:.0%} to {share.high:.0%}"
