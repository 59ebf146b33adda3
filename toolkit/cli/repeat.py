"""The `repeat` command. Nothing slow is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def repeat(
    recipe: Annotated[
        str, typer.Argument(help="NAME[@variant][@scale]: of recipes/, or a .yaml file.")
    ],
    seeds: Annotated[int, typer.Option(min=2, help="How many, the recipe's own first.")] = 3,
    same_documents: Annotated[
        bool,
        typer.Option(
            "--same-documents",
            help="Train, tune and test every seed on the first one's documents: what differs is "
            "training and search alone.",
        ),
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
) -> None:
    """Make a whole run once per seed: what differs between seeds, beside what differs by items."""
    from toolkit.pipeline.repeat import run_repeat
    from toolkit.pipeline.run import Run

    run_repeat(Run.open(recipe, runs), seeds, same_documents=same_documents)
