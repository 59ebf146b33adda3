"""The `compare` command. Nothing slow is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import RecipeName, Runs, ScoreTestAgain


def compare(
    recipe: RecipeName,
    ways: Annotated[
        str, typer.Option(help="A file of recipes/ways/ by name, or a .yaml file; else NAME's.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How many, the recipe's own first.")] = 3,
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="Folder of other runs whose finished stages serve where they are the same; "
            "nothing is written there."
        ),
    ] = None,
    runs: Runs = Path("runs"),
    score_test_again: ScoreTestAgain = False,
) -> None:
    """Compare ways of adapting a recipe's model over seeds, beside the line of its plain merges."""
    from toolkit.compare.stage import ensure_comparison
    from toolkit.pipeline.run import Run

    ensure_comparison(
        Run.open(recipe, runs),
        ways,
        num_seeds=seeds,
        reuse=reuse,
        score_test_again=score_test_again,
    )
