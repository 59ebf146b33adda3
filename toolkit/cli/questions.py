"""`toolkit questions`: questions out of a recipe's own documents."""

from __future__ import annotations

from pathlib import Path

import typer

from toolkit.cli.options import RecipeName, Runs

app = typer.Typer(no_args_is_help=True, help="Questions out of one's own documents.")


@app.callback()
def _noun() -> None:
    """Questions out of one's own documents."""


@app.command("write")
def write(recipe: RecipeName, runs: Runs = Path("runs")) -> None:
    """Write closed-book questions of a recipe's documents, and pages to strike in."""
    from toolkit.pipeline.questions import write_questions
    from toolkit.pipeline.run import Run

    write_questions(Run.open(recipe, runs))
