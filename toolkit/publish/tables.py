"""Tables of a model card: figures, texts and settings as rows of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from toolkit.publish.settings import SourceFacts
from toolkit.report.verdict import count_of, model_columns
from toolkit.select.results import MergeResults


@dataclass(frozen=True)
class ResultTitle:
    """One set of test items.

    Attributes:
        key: name of the set in the results.
        name: name for people.
        slug: name of its dataset, for the metadata.
        unit: unit of the figures.
        metric: the unit as an identifier.
        head: head of its column in a table.
    """

    key: str
    name: str
    slug: str
    unit: str
    metric: str
    head: str


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; bars in a cell are escaped.

    >>> print(table(("a", "b"), [("1", "x|y")]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    body = [[_escape_cell(str(cell)) for cell in row] for row in rows]
    lines = [" | ".join(heads), "|".join("---" for _ in heads), *(" | ".join(r) for r in body)]
    return "\n".join(
        f"|{line}|" if number == 1 else f"| {line} |" for number, line in enumerate(lines)
    )


def _escape_cell(text: str) -> str:
    # Backslashes before a bar are doubled: an odd one would escape ours, and the bar end the cell.
    escaped = re.sub(r"(\\*)\|", lambda found: f"{found[1] * 2}\\|", text)
    return " ".join(escaped.splitlines())


def result_titles(results: MergeResults, sources: Sequence[SourceFacts]) -> list[ResultTitle]:
    """The sets that all models were scored on, in the order of the results."""
    dataset_names = {source.name: source.dataset or source.name for source in sources}
    titles = []
    for row in results.sets:
        if row.name not in results.models.merge.sets:
            continue
        # What is no source of documents has prompts, questions or middles.
        count = count_of(row)
        count = count.replace(" items", " documents") if row.name in dataset_names else count
        titles.append(
            ResultTitle(
                key=row.name,
                name=f"{row.name} ({row.role}, {count})",
                slug=dataset_names.get(row.name, row.name),
                unit=row.unit,
                metric=re.sub(r"\W+", "_", row.unit),
                head=f"{row.name} ({row.role}), {row.unit} ({count})",
            )
        )
    return titles


def result_rows(results: MergeResults, titles: Sequence[ResultTitle]) -> list[tuple[str, ...]]:
    """A row of figures for each model, and under it what changed against the general model."""
    table_rows: list[tuple[str, ...]] = []
    for shown in model_columns(results):
        model, model_figures = shown.kind, shown.figures
        model_title = "this model" if model == "merge" else shown.title
        figure_cells = [model_figures.sets[column.key].words() for column in titles]
        if model != "general":
            changes = [model_figures.set_changes[column.key].words(sign="+") for column in titles]
            # Markdown has no line break within a cell, and the hub shows this one.
            figure_cells = [
                f"{cell}<br>{change}" for cell, change in zip(figure_cells, changes, strict=True)
            ]
        table_rows.append((model_title, *figure_cells))
    return table_rows


def source_rows(sources: Sequence[SourceFacts]) -> list[tuple[str, ...]]:
    """A row for each source of documents, with what was used of it."""
    return [
        (
            f"{source.name} ({source.origin})" if source.origin else source.name,
            source.role,
            source.license,
            "" if source.trained_tokens is None else f"{source.trained_tokens:,}",
            _documents(source.validation_documents),
            _documents(source.test_documents),
        )
        for source in sources
    ]


def _documents(count: int | None) -> str:
    return "" if count is None else f"{count:,} documents"


def training_rows(training: Mapping[str, object]) -> list[tuple[str, str]]:
    """Settings and figures of continued pre-training, those that are there."""
    shown_rows = []
    for title, value in training.items():
        if value is None or value == "":
            continue
        text = f"{value:,}" if isinstance(value, int) else value
        shown_rows.append((title, f"{text:.4g}" if isinstance(text, float) else str(text)))
    return shown_rows
