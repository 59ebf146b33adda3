"""The `merge` commands. Nothing slow is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.options import OutFolder, RecipeName, Runs, ScoreTestAgain, Verify, seed_option

if TYPE_CHECKING:
    from toolkit.merge.achieved import AchievedFractions
    from toolkit.merge.graph import MergeGraph

app = typer.Typer(no_args_is_help=True, help="Merging, and the choice of a merge.")

Configuration = Annotated[Path, typer.Argument(help="A mergekit configuration.")]


@app.command("choose")
def merge_choose(
    recipe: RecipeName,
    runs: Runs = Path("runs"),
    score_test_again: ScoreTestAgain = False,
    verify: Verify = False,
) -> None:
    """Search, choose and write a recipe's merge; runs data and cpt first where needed."""
    from toolkit.file_hashes import verify_all
    from toolkit.pipeline.run import Run
    from toolkit.pipeline.stages import ensure_merge, show_outcome
    from toolkit.plan.outlook import say_outlook

    verify_all(verify)
    run = Run.open(recipe, runs)
    say_outlook(run, "merge")
    show_outcome(ensure_merge(run, score_test_again=score_test_again))


@app.command("run")
def merge_run(
    config: Configuration,
    out: OutFolder,
    seed: Annotated[int, seed_option("Seed of random methods.")] = 0,
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
    part: Annotated[
        str | None,
        typer.Option(
            help="Write a part of the files, such as 3/8, beside other machines that write the "
            "others to the same file system; the last one finishes OUT."
        ),
    ] = None,
    shard_size: Annotated[
        str, typer.Option(help="Most bytes in one file, such as 5GB or 500MB.")
    ] = "5GB",
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Then write OUT.diagnosis.html and .json.")
    ] = False,
) -> None:
    """Run a merge configuration, or several in one file that build on each other."""
    from toolkit.checkpoint.write import parse_bytes
    from toolkit.errors import ConfigError
    from toolkit.merge.graph import load_merge_graph, run_merge_graph

    achieved: list[AchievedFractions] = []
    graph = load_merge_graph(config)
    # Before the merge, which may take an hour, and not when its page is due.
    if diagnose and len(graph.steps) > 1:
        raise ConfigError(
            f"{config}: holds several merges, whose intermediate models are gone afterwards; run "
            "them from files of their own to have each diagnosed."
        )
    settings: dict[str, Any] = {
        "seed": seed,
        "shard_bytes": parse_bytes(shard_size, "--shard-size"),
        "allow_non_finite": allow_non_finite,
        "truncate_embeddings": truncate,
        "device": device,
    }
    if part is not None:
        _merge_part(graph, config, out, part, is_diagnosed=diagnose, **settings)
        return
    plan = run_merge_graph(graph, out, tell_achieved=achieved.append, **settings)
    print(f"{plan.method.name}: {len(plan.tasks)} tensors written to {out}", flush=True)
    for fractions in achieved:
        print("".join(f"  {line}\n" for line in fractions.sentences()), end="", flush=True)
    if diagnose:
        from toolkit.diagnose.run import diagnose_merge

        diagnose_merge(out, graph.result, seed)


def _merge_part(
    graph: MergeGraph, config: Path, out: Path, part: str, *, is_diagnosed: bool, **settings: Any
) -> None:
    """Write a part of the files, and say what is left to others."""
    from toolkit.errors import ConfigError
    from toolkit.merge.parts import parse_part, run_merge_part

    if len(graph.steps) > 1 or is_diagnosed:
        what = "--diagnose needs the whole model" if is_diagnosed else "it holds several merges"
        raise ConfigError(f"{config}: --part writes a part of one merge, and {what}.")
    outcome = run_merge_part(graph.result, out, parse_part(part), **settings)
    print(f"part {part}: {len(outcome.written)} files written")
    if outcome.is_complete:
        print(f"all files are there: {out} is complete")
    for file, its_part in outcome.missing.items():
        print(f"  not there yet: {file} (part {its_part})")


@app.command("plan")
def merge_plan(
    config: Configuration,
    device: Annotated[str, typer.Option(help="Where it would compute: cpu, cuda, ...")] = "cpu",
) -> None:
    """Say what a merge configuration would do, and do nothing."""
    from toolkit.merge.describe import describe_merge
    from toolkit.merge.graph import load_merge_graph

    graph = load_merge_graph(config)
    for step in graph.steps:
        if len(graph.steps) > 1:
            print(f"{step.name or 'the result'}:")
        if step.needs:
            print(f"takes {', '.join(sorted(step.needs))}, made before; planned when it is there")
        else:
            print(describe_merge(step.config, device=device))


@app.command("check")
def merge_check(
    config: Configuration,
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


@app.command("diagnose")
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


@app.command("statistics")
def merge_statistics(
    model: Annotated[Path, typer.Argument(help="Folder of a model that is to be merged.")],
    texts: Annotated[Path, typer.Argument(help="What it is for: text, or .jsonl with `text`.")],
    out: Annotated[Path, typer.Argument(help="File to make, .safetensors.")],
    kind: Annotated[str, typer.Option(help="Method that they are for: regmean or fisher.")],
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to read at most.")] = 20_000,
    window: Annotated[int, typer.Option(min=2, help="Tokens that are read together.")] = 512,
) -> None:
    """Write what a model's layers read, or its gradients, on texts: for regmean and fisher."""
    from toolkit.errors import ConfigError
    from toolkit.merge.moments import write_moments
    from toolkit.progress import say

    if kind not in ("regmean", "fisher"):
        raise ConfigError(f"--kind: must be regmean or fisher (got {kind}).")
    num_tokens = write_moments(
        model,
        texts,
        out,
        kind="regmean" if kind == "regmean" else "fisher",
        num_tokens=tokens,
        window_tokens=window,
    )
    say(f"statistics of {num_tokens:,} tokens written to {out}")


@app.command("moe")
def merge_moe(
    config: Annotated[Path, typer.Argument(help="A configuration of mergekit-moe.")],
    out: Annotated[Path | None, typer.Argument(help="Folder to make.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be made, and make nothing.")
    ] = False,
    seed: Annotated[int, seed_option("Of random rows and of noise.")] = 0,
) -> None:
    """Make a mixture of experts from dense models (sparse upcycling)."""
    from toolkit.checkpoint.models import Models
    from toolkit.errors import ConfigError
    from toolkit.merge.moe.config import load_moe_config
    from toolkit.merge.moe.plan import plan_moe
    from toolkit.merge.moe.run import describe_moe, run_moe
    from toolkit.progress import say

    moe_config = load_moe_config(config)
    if plan:
        print(describe_moe(moe_config, plan_moe(moe_config, Models())))
        return
    if out is None:
        raise ConfigError("OUT: is missing; give a folder to make, or --plan.")
    moe_plan = run_moe(moe_config, out, seed=seed)
    say(describe_moe(moe_config, moe_plan))
    say(f"written to {out}")
