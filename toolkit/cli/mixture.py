"""`toolkit fit mixture`. Nothing slow is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import Runs

Lines = Annotated[Path | None, typer.Option("--from", help="Lines of JSON with runs made already.")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate to take of --from.")]

fit_app = typer.Typer(no_args_is_help=True, help="Laws fitted to small runs.")


@fit_app.callback()
def _group() -> None:
    """Laws fitted to small runs."""


@fit_app.command("mixture")
def fit_mixture(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe in recipes/ by name, or a .yaml file.")
    ] = None,
    shares: Annotated[
        str, typer.Option(help="Domain shares of the small runs.")
    ] = "0.5,0.65,0.8,0.9,1.0",
    tokens: Annotated[int, typer.Option(help="Training tokens of each run.")] = 12_000,
    repeats: Annotated[
        int, typer.Option(help="Runs of each share, with other blocks in another order.")
    ] = 1,
    tolerance: Annotated[
        float, typer.Option(help="Tolerated rise of bits per byte on general text.")
    ] = 0.02,
    hold_out: Annotated[
        str, typer.Option(help="Shares that are run too, not fitted, and predicted.")
    ] = "",
    lines: Lines = None,
    rate: Rate = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for --from; else runs/RECIPE/mixture.")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Fit a law of mixture: the largest domain share within a tolerated general loss."""
    from toolkit.errors import ConfigError
    from toolkit.mixture_law import stage
    from toolkit.mixture_law.runs import load_runs
    from toolkit.pipeline.run import Run

    held_out = stage.parse_shares(hold_out)
    if (recipe is None) == (lines is None):
        raise ConfigError("give either a recipe, whose small runs are made, or --from FILE.")
    if lines is not None:
        stage.report_mixture(load_runs(lines, rate), held_out, tolerance, out, lines.stem)
        return
    run = Run.open(str(recipe), runs)
    all_shares = tuple(dict.fromkeys((*stage.parse_shares(shares), *held_out)))
    request = stage.MixtureRequest(all_shares, tokens, repeats)
    stage.check_fit(request, held_out, tolerance)
    mixture_runs = stage.load_scores(stage.run_mixtures(run, request))
    folder = out or run.root / stage.FOLDER
    stage.report_mixture(mixture_runs, held_out, tolerance, folder, run.name)
