"""`toolkit eval`: models on tasks, with intervals, and against each other on the same items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Model folders; all on the same items.")],
    tasks: Annotated[
        str, typer.Option(help="Tasks or groups of lm-eval, by commas; with `+` the examples: a+5.")
    ] = "",
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with YAML task files of your own.")
    ] = None,
    bigbench: Annotated[
        str, typer.Option(help="Tasks of BIG-bench, by commas; its package is fetched once.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task at most, for a first look.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for all figures and every item.")
    ] = None,
) -> None:
    """Score model folders on tasks of lm-eval and BIG-bench, and compare them item by item."""
    from toolkit.evaluate.compare import run_evaluation

    run_evaluation(
        models,
        tasks=_listed(tasks),
        include_path=include_path,
        bigbench=_listed(bigbench),
        limit=limit,
        out=out,
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
