"""The `power` command. Nothing slow is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def power(
    recipe: Annotated[
        str, typer.Argument(help="NAME[@variant][@scale]: of recipes/, or a .yaml file.")
    ],
    runs: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
) -> None:
    """What the sets of a recipe can see: the smallest loss, and how many groups it would take."""
    from toolkit.pipeline.power import run_power
    from toolkit.pipeline.run import Run

    run_power(Run.open(recipe, runs))
