"""`toolkit plan`: what a recipe needs, before any money is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    recipe: Annotated[
        str, typer.Argument(help="NAME[@variant][@scale]: of recipes/, or a .yaml file.")
    ],
    runs: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    devices: Annotated[
        list[str] | None,
        typer.Option(help="Devices to train on, such as 8xH100 or CPU; once for each choice."),
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="Dollars an hour, such as H100=2.5; once for each.")
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(help="YAML with prices (H100: 2.5) and devices of your own.")
    ] = None,
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
    from toolkit.plan.devices import DEVICES, with_prices
    from toolkit.plan.plan import (
        PlanRequest,
        check_write,
        finish,
        make_plan,
        write_plan,
        write_recipe,
    )
    from toolkit.plan.table import show_plan
    from toolkit.progress import say

    if write is not None:
        check_write(write)
    wanted = PlanRequest(
        fleets=tuple(devices or ()),
        devices=with_prices(DEVICES, price or (), prices),
        utilization=utilization,
        pretraining_tokens=pretrained_on,
        measure=measure,
    )
    run = Run.open(recipe, runs)
    made = make_plan(run, wanted)
    show_plan(made)
    path = write_plan(run, made)
    say(f"\n{path} and {path.with_suffix('.html').name} are written; {made.seconds} s.")
    say(f"What its sets can see of a loss: toolkit power {recipe} (before anything is trained).")
    if write is not None:
        write_recipe(run, made, write)
        say(f"{write} is ready: toolkit cpt run {write}")
    finish(made)
