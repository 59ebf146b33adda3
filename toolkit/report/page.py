"""The report as one self-contained HTML page: opens anywhere, offline, and can be mailed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from toolkit.report.again import again_section
from toolkit.report.html import paragraph, write_document
from toolkit.report.measured_section import answers_section, documents_section, models_section
from toolkit.report.search_section import (
    candidates_section,
    front_section,
    history_section,
    sweep_section,
)
from toolkit.report.training_section import training_section
from toolkit.report.verdict import lost_sets, notes, sets_of, unit_of, verdict


def write_page(
    results: Mapping[str, Any],
    path: Path,
    *,
    merge_yaml: str,
    training: Sequence[Mapping[str, Any]] = (),
    answers: Sequence[Mapping[str, str]] = (),
    again: Mapping[str, Any] | None = None,
) -> None:
    """Write the page; a part whose figures are missing is left out. Same inputs, same bytes.

    Args:
        results: of the merge stage, as in `report.json`.
        path: of the `.html` file.
        merge_yaml: the chosen merge.
        training: rows of the cpt stage's `metrics.jsonl`.
        answers: `prompt`, `general`, `specialist` and `merge` of each prompt.
        again: from `again_of`.
    """
    title = f"{results['recipe']}: which merge, and what it keeps"
    sentences = " ".join(verdict(results))
    opening = (
        f"<h1>{escape(title)}</h1>"
        + paragraph(sentences, "verdict")
        + (paragraph(results["description"], "note") if results["description"] else "")
        + _figures(results)
    )
    sections = [
        models_section(results),
        front_section(results),
        sweep_section(results),
        history_section(results),
        training_section(training),
        documents_section(results),
        answers_section(answers, results["chosen"]),
        candidates_section(results),
        again_section(again, merge_yaml),
    ]
    write_document(path, title, opening, sections)


def _figures(results: Mapping[str, Any]) -> str:
    """The few figures that a hurried reader takes away."""
    merge = results["models"]["merge"]
    kept, recovered = results["gain_kept"], results["loss_recovered"]
    rows = [
        ("change on the domain", *_estimate(merge["domain_change"]), unit_of(results, "domain")),
        (
            "change on general sets",
            *_estimate(merge["general_change"]),
            unit_of(results, "general"),
        ),
    ]
    # What fades on a set in another unit is in no mean, and must not be overlooked.
    mixed = {row["name"] for row in sets_of(results, "general")}
    rows += [
        (f"change on {name}", *_estimate(value), unit)
        for name, value, unit in lost_sets(results, "merge")
        if name not in mixed
    ]
    if kept is not None:
        rows.append(("of the gain kept", *_share(kept), ""))
    if recovered is not None:
        rows.append(("of the loss recovered", *_share(recovered), ""))
    qualified = sum(bool(row["qualified"]) for row in results["candidates"])
    rows.append(
        ("candidates tried", str(len(results["candidates"])), f"{qualified} within tolerance", "")
    )
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}"
        f"<small>{escape(' '.join((detail, unit)).strip())}</small></dd></div>"
        for name, figure, detail, unit in rows
    )
    lines = "".join(paragraph(line, "note") for line in (results["reason"], *notes(results)))
    return f'<dl class="figures">{items}</dl><div class="notes">{lines}</div>'


def _estimate(change: Mapping[str, float]) -> tuple[str, str]:
    return f"{change['estimate']:+.3f}", f"{change['low']:+.3f} to {change['high']:+.3f}"


def _share(share: Mapping[str, float]) -> tuple[str, str]:
    return f"{share['estimate']:.0%}", f"{share['low']:.0%} to {share['high']:.0%}"
