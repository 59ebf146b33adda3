"""`toolkit plan` and `toolkit power`: what a recipe needs, and what its sets can see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import RecipeName, Runs

Devices = Annotated[
    list[str] | None,
    typer.Option(help="Devices to train on, such as 8xH100 or CPU; once for each choice."),
]
Price = Annotated[
    list[str] | None, typer.Option(help="Dollars per hour, such as H100=2.5; once for each.")
]
PriceFile = Annotated[
    Path | None, typer.Option(help="YAML with prices (H100: 2.5) and devices of your own.")
]


def plan(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    devices: Devices = None,
    price: Price = None,
    prices: PriceFile = None,
    utilization: Annotated[
        float | None, typer.Option(help="Share of a GPU's peak that training reaches.")
    ] = None,
    pretrained_on: Annotated[
        float | None,
        typer.Option(help="Tokens of the model's first training, where they are not known."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="A recipe to write, with the settings that follow.")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Let the general model read, and time this machine.")
    ] = True,
) -> None:
    """Is CPT the right tool, what will it take, which settings; trains nothing."""
    from toolkit.pipeline.run import Run
    from toolkit.plan import plan as planning
    from toolkit.plan.devices import DEVICES, with_prices
    from toolkit.plan.ready_recipe import check_write, write_recipe
    from toolkit.plan.table import show_plan
    from toolkit.progress import say

    # Before minutes of measuring: a file that stands there is refused at once.
    if write is not None:
        check_write(write)
    request = planning.PlanRequest(
        fleets=tuple(devices or ()),
        devices=with_prices(DEVICES, price or (), prices),
        utilization=utilization,
        pretraining_tokens=pretrained_on,
        measure=measure,
    )
    run = Run.open(recipe, runs)
    results = planning.make_plan(run, request)
    show_plan(results)
    path = planning.write_plan(run, results)
    say(f"\n{path} and {path.with_suffix('.html').name} are written; {results.seconds} s.")
    say(f"What its sets can see of a loss: toolkit power {recipe} (before anything is trained).")
    if write is not None:
        write_recipe(run, results, write)
        say(f"{write} is ready: toolkit cpt run {write}")
    # Last, as it ends with an error where the recipe has faults: the page stands by then.
    planning.finish(results)


def power(recipe: RecipeName, runs: Runs = Path("runs")) -> None:
    """What the sets of a recipe can see: the smallest loss, and how many groups it would take."""
    from toolkit.pipeline.power import run_power
    from toolkit.pipeline.run import Run

    run_power(Run.open(recipe, runs))
