"""Tables of a model card: figures, texts and settings as rows of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODELS = (("general", "general model"), ("specialist", "specialist"), ("merge", "this model"))


@dataclass(frozen=True)
class ResultTitle:
    """One set of test items.

    Attributes:
        key: in the results of a model.
        name: for people.
        slug: for the metadata: a dataset's name.
        unit: of the figure.
        metric: the same as an identifier.
        head: of a table's column.
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
    | 1 | x\\\\|y |
    """
    body = [[str(cell).replace("|", "\\\\|") for cell in row] for row in rows]
    lines = [" | ".join(heads), "|".join("---" for _ in heads), *(" | ".join(r) for r in body)]
    return "\n".join(
        f"|{line}|" if number == 1 else f"| {line} |" for number, line in enumerate(lines)
    )


def interval(value: Mapping[str, Any], *, signed: bool = False, bare: bool = False) -> str:
    """An estimate with its interval.

    >>> interval({"estimate": 0.5, "low": 0.25, "high": 0.75})
    '0.5000 (0.2500 to 0.7500)'
    """
    sign = "+" if signed else ""
    low, high = (f"{value[key]:{sign}.4f}" for key in ("low", "high"))
    return f"{low} to {high}" if bare else f"{value['estimate']:{sign}.4f} ({low} to {high})"


def figures_of(row: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """A model's figures and their changes against the general model: by set where the results
    have that, else by role."""
    if row.get("sets"):
        changes = row.get("set_changes", {})
        return {name: (value, changes.get(name)) for name, value in row["sets"].items()}
    return {
        key: (value, row.get(f"{key}_change"))
        for key, value in row.items()
        if not key.endswith("_change") and isinstance(value, Mapping) and "estimate" in value
    }


def result_titles(
    results: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]
) -> list[ResultTitle]:
    """The sets that all models were scored on, in the order of the results."""
    sets = {entry["name"]: entry for entry in results.get("sets", ())}
    titles = []
    for key in figures_of(results["models"]["merge"]):
        entry = sets.get(key)
        own = [s for s in sources if (s["name"] if entry else s["role"]) == key]
        names = key if entry else ", ".join(str(source["name"]) for source in own) or key
        role = str(entry["role"]) if entry else key
        count = entry["items_test"] if entry else results.get("test", {}).get(key)
        documents = f"{count} documents" if isinstance(count, int) else "test"
        default = results.get("units", {}).get(key, "bits per byte")
        unit = str(entry["unit"] if entry else default)
        titles.append(
            ResultTitle(
                key=key,
                name=f"{names} ({role}, {documents})",
                slug=str(own[0].get("dataset") or own[0]["name"]) if own else key,
                unit=unit,
                metric=re.sub(r"\W+", "_", unit),
                head=f"{names} ({role}), {unit} ({documents})"
                if entry
                else f"{key}, {unit} ({documents})",
            )
        )
    return titles


def result_rows(results: Mapping[str, Any], titles: Sequence[ResultTitle]) -> list[tuple[str, ...]]:
    """A row of figures for each model, and under it what changed against the general model."""
    rows: list[tuple[str, ...]] = []
    for key, title in MODELS:
        row = results["models"].get(key)
        if row is None:
            continue
        cells = []
        for column in titles:
            figure, change = figures_of(row).get(column.key, (None, None))
            cell = interval(figure) if figure else ""
            if key != "general" and change:
                cell += f"<br>{interval(change, signed=True)}"
            cells.append(cell)
        rows.append((title, *cells))
    return rows


def source_rows(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each source of documents, with what was used of it."""

    def count(source: Mapping[str, Any], part: str, unit: str) -> str:
        entry = source.get("counts", {}).get(part, {})
        if unit not in entry:
            return ""
        return f"{entry[unit]:,}" if unit == "tokens" else f"{entry[unit]:,} documents"

    return [
        (
            f"{source['name']} ({source['origin']})" if source.get("origin") else source["name"],
            source["role"],
            source["license"],
            count(source, "trained on", "tokens"),
            count(source, "validation", "documents"),
            count(source, "test", "documents"),
        )
        for source in sources
    ]


def training_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings and figures of continued pre-training, those that are there."""
    rows = []
    for title, value in training.items():
        if value is None or value == "":
            continue
        text = f"{value:,}" if isinstance(value, int) else value
        rows.append((title, f"{text:.4g}" if isinstance(text, float) else str(text)))
    return rows
