"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.limits import MOST_SEED

RecipeName = Annotated[
    str, typer.Argument(help="NAME[@variant][@scale]: of recipes/, or a .yaml file.")
]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read all files of finished stages anew.")]
ScoreTestAgain = Annotated[
    bool,
    typer.Option(
        "--score-test-again", help="Score the test documents for another choice; is counted."
    ),
]
OutFolder = Annotated[Path, typer.Argument(help="Folder to make.")]


def seed_option(what: str) -> Any:
    """A seed, with the help text that says of what."""
    return typer.Option(min=0, max=MOST_SEED, help=what)
