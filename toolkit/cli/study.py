"""The `study` commands. Nothing slow is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import Runs

app = typer.Typer(no_args_is_help=True, help="Published claims, and what a run shows of them.")

RecipeName = Annotated[str, typer.Argument(help="NAME[@scale]: of recipes/, or a .yaml file.")]


@app.command("run")
def run(recipe: RecipeName, runs: Runs = Path("runs")) -> None:
    """Make every model that a recipe's claims name, score them on its test documents, and judge."""
    from toolkit.pipeline.run import Run
    from toolkit.study.stage import ensure_study

    ensure_study(Run.open(recipe, runs))


@app.command("table")
def table(
    studies: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders or study.json files; else all that stand in the runs."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Markdown page to bring up to date.")] = Path(
        "docs/systems.md"
    ),
    runs: Runs = Path("runs"),
) -> None:
    """Put the tables of studies into a page; what is written by hand there stays."""
    from toolkit.study.stage import write_tables

    write_tables(studies or sorted(runs.glob("*/study/study.json")), out)
