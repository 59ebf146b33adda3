"""Commands that run a recipe's stages, or training beside them. Nothing slow is imported before
one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import RecipeName, Runs, ScoreTestAgain, Verify
from toolkit.errors import ConfigError

data_app = typer.Typer(no_args_is_help=True, help="Documents to packed tokens.")
cpt_app = typer.Typer(no_args_is_help=True, help="Continued pre-training.")
search_app = typer.Typer(no_args_is_help=True, help="The search for merge weights.")
sft_app = typer.Typer(no_args_is_help=True, help="Fine-tuning on conversations.")
checkpoint_app = typer.Typer(no_args_is_help=True, help="Model folders and kept states.")


@data_app.command("run")
def data_run(recipe: RecipeName, runs: Runs = Path("runs"), verify: Verify = False) -> None:
    """Fetch, clean, split, tokenize and pack a recipe's documents."""
    from toolkit.file_hashes import verify_all
    from toolkit.pipeline.models import ensure_data
    from toolkit.pipeline.run import Run

    verify_all(verify)
    ensure_data(Run.open(recipe, runs))


@data_app.command("write")
def data_write(recipe: RecipeName, runs: Runs = Path("runs")) -> None:
    """Write more text from a recipe's training documents, by patterns and by a model."""
    from toolkit.pipeline.run import Run
    from toolkit.pipeline.written_texts import write_texts_of

    write_texts_of(Run.open(recipe, runs))


@cpt_app.command("run")
def cpt_run(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    change_schedule: Annotated[
        bool,
        typer.Option(
            "--change-schedule", help="Continue an interrupted run under a changed schedule."
        ),
    ] = False,
    verify: Verify = False,
) -> None:
    """Train a recipe's general model into the specialist."""
    from toolkit.file_hashes import verify_all
    from toolkit.pipeline.models import ensure_cpt
    from toolkit.pipeline.run import Run
    from toolkit.plan.outlook import say_outlook

    verify_all(verify)
    run = Run.open(recipe, runs)
    say_outlook(run, "cpt")
    ensure_cpt(run, change_schedule=change_schedule)


@search_app.command("worker")
def search_worker(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    number: Annotated[int, typer.Option(help="Of this worker; decides on the GPU.")] = 0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the search to begin.")] = 60.0,
) -> None:
    """Join the search of a recipe that `merge choose` runs, here or on another machine."""
    from toolkit.pipeline.run import Run
    from toolkit.pipeline.stages import join_merge

    join_merge(Run.open(recipe, runs), number=number, wait_seconds=wait)


@sft_app.command("run")
def sft_run(recipe: RecipeName, runs: Runs = Path("runs"), verify: Verify = False) -> None:
    """Fine-tune a recipe's merge on conversations; runs the stages before it where needed."""
    from toolkit.file_hashes import verify_all
    from toolkit.pipeline.run import Run
    from toolkit.pipeline.stages import ensure_sft

    verify_all(verify)
    ensure_sft(Run.open(recipe, runs))


def heal(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    score_test_again: ScoreTestAgain = False,
    verify: Verify = False,
) -> None:
    """Draw a recipe's merge or specialist back to the general model by distillation."""
    from toolkit.file_hashes import verify_all
    from toolkit.pipeline.heal import ensure_heal, show_healing
    from toolkit.pipeline.run import Run

    verify_all(verify)
    show_healing(ensure_heal(Run.open(recipe, runs), score_test_again=score_test_again))


@cpt_app.command("anneal")
def anneal(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    from_step: Annotated[
        int | None, typer.Option(help="A kept state of the constant phase; else the latest.")
    ] = None,
    steps: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Steps, or below 1 a share; else as train.anneal says."),
    ] = None,
) -> None:
    """Finish a specialist: bring the learning rate down from a state of the constant phase."""
    from toolkit.pipeline.models import ensure_anneal
    from toolkit.pipeline.run import Run

    ensure_anneal(Run.open(recipe, runs), from_step=from_step, steps=steps)


def infilling(recipe: RecipeName, runs: Runs = Path("runs")) -> None:
    """Score how well general model and specialist fill in the middle of held-out code."""
    from toolkit.pipeline.infill import measure_infilling
    from toolkit.pipeline.run import Run

    measure_infilling(Run.open(recipe, runs))


@checkpoint_app.command("average")
def average(
    places: Annotated[
        list[str], typer.Argument(help="Model folders and the one to make, or a recipe.")
    ],
    last: Annotated[
        int | None, typer.Option(min=2, help="With a recipe: states to average.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="One for each folder, such as 1,2,3; else all alike.")
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help="Each folder counts so many times as much as the one after it."),
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Average model folders into a new one, or the last states that a recipe's cpt kept."""
    # One place is a recipe, whose kept states are averaged; several are folders.
    if len(places) == 1:
        from toolkit.pipeline.models import ensure_average
        from toolkit.pipeline.run import Run

        if weights is not None or decay is not None:
            raise ConfigError("--weights and --decay: of a recipe's states, train.average says it.")
        ensure_average(Run.open(places[0], runs), last=last)
        return
    from toolkit.checkpoint.average import average_folders, average_weights, parse_weights
    from toolkit.progress import say

    *folders, out = map(Path, places)
    if last is not None:
        raise ConfigError("--last: is for a recipe's states; name the folders to average here.")
    if weights is not None and decay is not None:
        raise ConfigError("--weights, --decay: give one of them.")
    chosen_weights = (
        parse_weights(weights, len(folders))
        if weights is not None
        else average_weights(len(folders), decay)
    )
    num_tensors = average_folders(folders, chosen_weights, out)
    say(f"{num_tensors} tensors of {len(folders)} models averaged in {out}")


def repeat(
    recipe: RecipeName,
    seeds: Annotated[int, typer.Option(min=2, help="How many, the recipe's own first.")] = 3,
    same_documents: Annotated[
        bool,
        typer.Option(
            "--same-documents",
            help="Train, tune and test every seed on the first one's documents: what differs is "
            "training and search alone.",
        ),
    ] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Make a whole run once per seed: what differs between seeds, beside what differs by items."""
    from toolkit.pipeline.repeat import run_repeat
    from toolkit.pipeline.run import Run

    run_repeat(Run.open(recipe, runs), seeds, same_documents=same_documents)
