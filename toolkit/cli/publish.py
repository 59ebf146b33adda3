"""The `publish` commands. Nothing slow is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.options import RecipeName, Runs

if TYPE_CHECKING:
    from toolkit.publish.material import Material

app = typer.Typer(no_args_is_help=True, help="The merged model, for others.")

Repository = Annotated[str, typer.Option(help="Name to publish under, org/name.")]
Kind = Annotated[str, typer.Option("--format", help="safetensors, gguf or adapter.")]
Accept = Annotated[
    list[str] | None,
    typer.Option(help='A check that may fail, CHECK="reason"; the reason is published.'),
]


@app.command("run")
def run(
    recipe: RecipeName,
    repo: Repository,
    to: Annotated[
        str | None,
        typer.Option(help="A folder or an object store such as s3://…; else the hub."),
    ] = None,
    kind: Kind = "safetensors",
    runs: Runs = Path("runs"),
    upload: Annotated[bool, typer.Option(help="Send it, or stop after the checks.")] = True,
    public: Annotated[bool, typer.Option("--public", help="A new repository is public.")] = False,
    pr: Annotated[bool, typer.Option("--pr", help="Propose the files as a pull request.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name for the commit.")] = None,
    accept: Accept = None,
) -> None:
    """Bundle, check and upload a recipe's merge; runs the stages before it where needed."""
    from toolkit.errors import ConfigError
    from toolkit.publish.checks import parse_accepted
    from toolkit.publish.hub import HubTarget
    from toolkit.publish.stage import check_target, run_publish
    from toolkit.publish.store import store_address

    # Flags and credentials are checked first: the stages before may take hours.
    to = None if to is None else store_address(to)
    if to is not None and (public or pr or tag):
        raise ConfigError("--public, --pr and --tag belong to the hub, not to --to.")
    if pr and tag:
        raise ConfigError("--tag names a commit, and --pr only proposes one; tag it once merged.")
    accepted_checks = parse_accepted(accept or ())
    format_ = _format(kind)
    hub_target = HubTarget(_checked(repo), public=public, pull_request=pr, tag=tag)
    target = None if not upload else to or hub_target
    check_target(target)
    run_publish(_material(recipe, runs), format_, repo, accepted=accepted_checks, target=target)


@app.command("bundle")
def bundle(
    recipe: RecipeName,
    repo: Repository,
    kind: Kind = "safetensors",
    runs: Runs = Path("runs"),
    accept: Accept = None,
) -> None:
    """Make and check the bundle, and send nothing."""
    from toolkit.publish.checks import parse_accepted
    from toolkit.publish.stage import make_bundle

    accepted = parse_accepted(accept or ())
    make_bundle(_material(recipe, runs), _format(kind), _checked(repo), accepted)


@app.command("verify")
def verify(
    where: Annotated[str, typer.Argument(help="A folder, org/name on the hub, or s3://….")],
    revision: Annotated[str | None, typer.Option(help="Of a repository.")] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(help="Where a parent stands, NAME=FOLDER or general=FOLDER; once for each."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder to look for the parents in.")] = Path("runs"),
) -> None:
    """Recompute the hashes, make the merge again from its parents, compare; exits 1 if it fails."""
    from toolkit.publish.replay import parse_parents, run_verify

    holds = run_verify(where, revision=revision, parents=parse_parents(parent or ()), runs=runs)
    raise typer.Exit(int(not holds))


def _format(kind: str):  # type: ignore[no-untyped-def]  # a Format; its import is slow
    from toolkit.errors import ConfigError, sentence_end
    from toolkit.publish.config import FORMATS

    for known_format in FORMATS:
        if known_format == kind:
            return known_format
    raise ConfigError(
        f"--format {kind}: is unknown{sentence_end(kind, FORMATS)} Formats: {', '.join(FORMATS)}."
    )


def _checked(repository: str) -> str:
    """Refuse what no hub would take, before an hour of work."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

    from toolkit.errors import ConfigError
    from toolkit.library_errors import first_line

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repository}: {first_line(error)}") from None
    if repository.count("/") != 1:
        raise ConfigError(f"--repo {repository}: must be org/name.")
    return repository


def _material(name: str, runs: Path) -> Material:
    from toolkit.pipeline.models import (
        ensure_data,
        ensure_general,
        ensure_models,
        ensure_specialists,
    )
    from toolkit.pipeline.run import Run
    from toolkit.pipeline.stages import ensure_merge
    from toolkit.publish.material import Material

    run = Run.open(name, runs)
    # The merge first: it makes whatever it needs, so that the others below stand already.
    merged_model = ensure_merge(run)
    return Material(
        recipe=run.recipe,
        root=run.root,
        general=ensure_general(run),
        specialists=ensure_specialists(run),
        data=ensure_data(run),
        merged=merged_model,
        others=ensure_models(run),
    )
