"""The command line. Flags say where; whatever changes a number stands in the recipe.

Nothing slow is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit.adapter.cli import app as adapter_app
from toolkit.errors import ToolkitError
from toolkit.evaluate.cli import evaluate

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
publish_app = typer.Typer(no_args_is_help=True, help="The merged model, for others.")
app.add_typer(publish_app, name="publish")
app.add_typer(data_app, name="data")
app.add_typer(cpt_app, name="cpt")
app.add_typer(merge_app, name="merge")
app.add_typer(search_app, name="search")
app.add_typer(adapter_app, name="adapter")
app.command("eval")(evaluate)

_INTERRUPTED = 130

RecipeName = Annotated[str, typer.Argument(help="A recipe in recipes/ by name, or a .yaml file.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]


def main() -> None:
    """Run the command line; only our own bugs show a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(standalone_mode=False)  # typer answers Ctrl-C with the code that shells use
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except ToolkitError as error:
        _stop(str(error), error.exit_code)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _stop("Stopped. What was done is kept; the same command continues.", _INTERRUPTED)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        _stop(_disk_full(error.filename), 1)
    except Exception as error:
        # Libraries wrap the system's error in their own; its text is what they have in common.
        if "No space left on device" in str(error) or "os error 28" in str(error):
            _stop(_disk_full(None), 1)
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
            error.show()
            sys.exit(getattr(error, "exit_code", 2))
        raise


def _disk_full(file: object) -> str:
    where = f"{file}: " if file else ""
    return f"{where}the disk is full. Make room and run the same command: it continues."


def _stop(message: str, code: int) -> None:
    print(message if code == _INTERRUPTED else f"error: {message}", file=sys.stderr)
    sys.exit(code)


@data_app.command("run")
def data_run(recipe: RecipeName, runs: Runs = Path("runs")) -> None:
    """Fetch, clean, split, tokenise and pack a recipe's documents."""
    from toolkit.stages import ensure_data

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
) -> None:
    """Train a recipe's general model into the specialist."""
    from toolkit.stages import ensure_cpt

    ensure_cpt(_open(recipe, runs), change_schedule=change_schedule)


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
) -> None:
    """Search, choose and write a recipe's merge; runs data and cpt first where needed."""
    from toolkit.stages import ensure_merge, show_outcome

    show_outcome(ensure_merge(_open(recipe, runs), score_test_again=score_test_again))


@search_app.command("worker")
def search_worker(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    number: Annotated[int, typer.Option(help="Of this worker; decides on the GPU.")] = 0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the search to begin.")] = 60.0,
) -> None:
    """Join the search of a recipe that `merge choose` runs, here or on another machine."""
    from toolkit.stages import join_merge

    join_merge(_open(recipe, runs), number=number, wait_seconds=wait)


@merge_app.command("run")
def merge_run(
    config: Annotated[Path, typer.Argument(help="A mergekit configuration.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Seed of random methods.")] = 0,
    allow_non_finite: Annotated[
        bool, typer.Option("--allow-non-finite", help="Merge tensors with NaN or infinity.")
    ] = False,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Then write OUT.diagnosis.html and .json.")
    ] = False,
) -> None:
    """Run a merge configuration."""
    from toolkit.merge.config import load_merge_config
    from toolkit.merge.run import run_merge
    from toolkit.progress import say

    wanted = load_merge_config(config)
    plan = run_merge(wanted, out, seed=seed, allow_non_finite=allow_non_finite)
    say(f"{plan.method.name}: {len(plan.tasks)} tensors written to {out}")
    if diagnose:
        from toolkit.diagnosing import diagnose_merge

        diagnose_merge(out, wanted)


@merge_app.command("plan")
def merge_plan(
    config: Annotated[Path, typer.Argument(help="A mergekit configuration.")],
) -> None:
    """Say what a merge configuration would do, and do nothing."""
    from toolkit.merge.config import load_merge_config
    from toolkit.merge.describe import describe_merge

    print(describe_merge(load_merge_config(config)))


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
    from toolkit.diagnosing import run_diagnosis

    run_diagnosis(model, against or [], base=base, text=text, html=html, with_losses=losses)


@publish_app.command("run")
def publish_run(
    recipe: RecipeName,
    repo: Annotated[str, typer.Option(help="Repository to publish to, org/name.")],
    runs: Runs = Path("runs"),
    upload: Annotated[bool, typer.Option(help="Send it, or stop after the checks.")] = True,
    public: Annotated[bool, typer.Option("--public", help="Not private.")] = False,
) -> None:
    """Bundle, check and upload a recipe's merge; runs the stages before it where needed."""
    from toolkit.publishing import run_publish
    from toolkit.stages import ensure_merge

    run = _open(recipe, runs)
    merged = ensure_merge(run)
    run_publish(run.recipe, merged, run.root / "publish", repo, upload=upload, public=public)


def _open(name: str, runs: Path):  # type: ignore[no-untyped-def]  # a Run; its import is slow
    from toolkit.recipe import find_recipe, load_recipe
    from toolkit.stages import Run

    path = find_recipe(name)
    return Run.of(path, load_recipe(path), runs)


if __name__ == "__main__":
    main()
