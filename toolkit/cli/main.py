"""The command line. Flags say where; whatever changes a number stands in the recipe.

Nothing slow is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.adapter import app as adapter_app
from toolkit.cli.evaluate import evaluate
from toolkit.cli.generate import chat, generate
from toolkit.cli.machine import machine
from toolkit.cli.mixture import fit_app
from toolkit.cli.moe import merge_moe
from toolkit.cli.plan import plan
from toolkit.cli.power import power
from toolkit.cli.process import INTERRUPTED, errors_in_one_line, quieten
from toolkit.cli.publish import app as publish_app
from toolkit.cli.repeat import repeat
from toolkit.cli.study import app as study_app
from toolkit.cli.train import anneal, checkpoint_app, infilling, sft_app
from toolkit.limits import MOST_SEED

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt a language model to a domain without losing the model.",
)
data_app = typer.Typer(no_args_is_help=True, help="Documents to packed tokens.")
cpt_app = typer.Typer(no_args_is_help=True, help="Continued pre-training.")
merge_app = typer.Typer(no_args_is_help=True, help="Merging, and the choice of a merge.")
search_app = typer.Typer(no_args_is_help=True, help="The search for merge weights.")
app.add_typer(publish_app, name="publish")
app.add_typer(study_app, name="study")
app.add_typer(data_app, name="data")
app.add_typer(cpt_app, name="cpt")
app.add_typer(merge_app, name="merge")
app.add_typer(search_app, name="search")
app.add_typer(adapter_app, name="adapter")
app.command()(generate)
app.command()(chat)
app.add_typer(sft_app, name="sft")
app.add_typer(fit_app, name="fit")
app.add_typer(checkpoint_app, name="checkpoint")
cpt_app.command("anneal")(anneal)
merge_app.command("moe")(merge_moe)
app.command("eval")(evaluate)
app.command()(infilling)
app.command("plan")(plan)
app.command()(power)
app.command()(repeat)
app.command()(machine)

RecipeName = Annotated[
    str, typer.Argument(help="NAME[@variant][@scale]: of recipes/, or a .yaml file.")
]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Read all files of finished stages anew."),
]


def main() -> None:
    """Run the command line; only our own bugs show a traceback."""
    quieten()
    with errors_in_one_line():
        try:
            code = app(standalone_mode=False)  # typer answers Ctrl-C with the code shells use
        except typer.Exit as done:
            sys.exit(done.exit_code)
        except typer.Abort:
            raise KeyboardInterrupt from None
        except Exception as error:
            if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
                error.show()
                sys.exit(getattr(error, "exit_code", 2))
            raise
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)


@data_app.command("run")
def data_run(recipe: RecipeName, runs: Runs = Path("runs"), verify: Verify = False) -> None:
    """Fetch, clean, split, tokenize and pack a recipe's documents."""
    from toolkit.file_hashes import verify_all
    from toolkit.pipeline.models import ensure_data

    verify_all(verify)
    ensure_data(_open(recipe, runs))


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
    from toolkit.plan.outlook import say_outlook

    verify_all(verify)
    run = _open(recipe, runs)
    say_outlook(run, "cpt")
    ensure_cpt(run, change_schedule=change_schedule)


@merge_app.command("choose")
def merge_choose(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    score_test_again: Annotated[
        bool,
        typer.Option(
            "--score-test-again", help="Score the test documents for another choice; is counted."
        ),
    ] = False,
    verify: Verify = False,
) -> None:
    """Search, choose and write a recipe's merge; runs data and cpt first where needed."""
    from toolkit.file_hashes import verify_all
    from toolkit.pipeline.stages import ensure_merge, show_outcome
    from toolkit.plan.outlook import say_outlook

    verify_all(verify)
    run = _open(recipe, runs)
    say_outlook(run, "merge")
    show_outcome(ensure_merge(run, score_test_again=score_test_again))


@search_app.command("worker")
def search_worker(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    number: Annotated[int, typer.Option(help="Of this worker; decides on the GPU.")] = 0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the search to begin.")] = 60.0,
) -> None:
    """Join the search of a recipe that `merge choose` runs, here or on another machine."""
    from toolkit.pipeline.stages import join_merge

    join_merge(_open(recipe, runs), number=number, wait_seconds=wait)


@merge_app.command("run")
def merge_run(
    config: Annotated[Path, typer.Argument(help="A mergekit configuration.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of random methods.")] = 0,
    allow_non_finite: Annotated[
        bool, typer.Option("--allow-non-finite", help="Merge tensors with NaN or infinity.")
    ] = False,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate-embeddings",
            help="Cut embeddings to the rows of the shortest, where the same rows are the same "
            "tokens (mergekit: --unsafe-truncate-embeddings).",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps, ...")] = "cpu",
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Then write OUT.diagnosis.html and .json.")
    ] = False,
) -> None:
    """Run a merge configuration."""
    from toolkit.merge.config import load_merge_config
    from toolkit.merge.to_disk import run_merge

    wanted = load_merge_config(config)
    plan = run_merge(
        wanted,
        out,
        seed=seed,
        allow_non_finite=allow_non_finite,
        truncate_embeddings=truncate,
        device=device,
    )
    print(f"{plan.method.name}: {len(plan.tasks)} tensors written to {out}", flush=True)
    if diagnose:
        from toolkit.diagnose.run import diagnose_merge

        diagnose_merge(out, wanted)


@merge_app.command("plan")
def merge_plan(
    config: Annotated[Path, typer.Argument(help="A mergekit configuration.")],
    device: Annotated[str, typer.Option(help="Where it would compute: cpu, cuda, ...")] = "cpu",
) -> None:
    """Say what a merge configuration would do, and do nothing."""
    from toolkit.merge.config import load_merge_config
    from toolkit.merge.describe import describe_merge

    print(describe_merge(load_merge_config(config), device=device))


@merge_app.command("check")
def merge_check(
    config: Annotated[Path, typer.Argument(help="A mergekit configuration.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder that will be made, for the room on its disk.")
    ] = None,
) -> None:
    """Find what is wrong or doubtful with a merge before it is run; exits 1 on errors."""
    from toolkit.merge.check.findings import findings_text
    from toolkit.merge.check.run import check_merge

    findings = check_merge(config, out=out)
    print(findings_text(findings))
    raise typer.Exit(int(any(finding.severity == "error" for finding in findings)))


@merge_app.command("diagnose")
def merge_diagnose(
    model: Annotated[Path, typer.Argument(help="Folder of the merged model.")],
    against: Annotated[
        list[str] | None, typer.Option(help="A parent; once for each. Else as merge.yaml says.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base of task vectors; else merge.yaml's or first parent.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text to score; else a short one.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write, and JSON beside it.")] = None,
    losses: Annotated[bool, typer.Option(help="Load the models and score them.")] = True,
) -> None:
    """Say what a merge did: norms, angles, distances, losses, and what is off."""
    from toolkit.diagnose.run import run_diagnosis

    run_diagnosis(model, against or [], base=base, text=text, html=html, with_losses=losses)


def _open(name: str, runs: Path):  # type: ignore[no-untyped-def]  # a Run; its import is slow
    from toolkit.pipeline.run import Run

    return Run.open(name, runs)


if __name__ == "__main__":
    main()
