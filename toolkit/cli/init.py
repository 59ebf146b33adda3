"""`toolkit init`: a recipe from a model and documents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from toolkit.plan.new_recipe import InitRequest

Paths = list[str] | None


def init(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="Of the recipe; it goes to recipes/NAME.yaml.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="General model: a folder, or org/name on the hub.")
    ] = None,
    specialist: Annotated[
        Paths,
        typer.Option(
            help="Finished specialist, none is trained: a folder, org/name, or an adapter; several "
            "as NAME=PATH, their --documents too."
        ),
    ] = None,
    documents: Annotated[
        Paths, typer.Option(help="Text of your domain: a file, folder or glob; repeatable.")
    ] = None,
    general: Annotated[
        Paths,
        typer.Option(help="General text, to be replayed and watched: likewise; repeatable."),
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="A recipe whose other settings are kept.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe of this name.")] = False,
) -> None:
    """Write a recipe that runs: looks at a model and documents, and says why at each setting."""
    from toolkit.errors import ConfigError
    from toolkit.plan.new_recipe import InitRequest, init_recipe
    from toolkit.progress import say

    if context.args:
        raise ConfigError(
            f"toolkit init: {context.args[0]!r} is one name too many; quote a glob, so that the "
            "shell leaves it to the toolkit: --documents 'texts/*.txt'."
        )
    # A script must not hang on a question that nobody sees.
    can_ask = sys.stdin.isatty() and sys.stdout.isatty()
    if name is None:
        if not can_ask:
            raise ConfigError("toolkit init: give a NAME for the recipe, such as `mine`.")
        name = typer.prompt("Name of the recipe")
    request = InitRequest(
        name=name,
        model=model,
        documents=tuple(documents or ()),
        general=tuple(general or ()),
        specialists=tuple(specialist or ()),
        start_from=start_from,
        force=force,
    )
    if can_ask and start_from is None:
        request = _ask_for_the_rest(request)
    path = init_recipe(request)
    asked_for = path.stem if path.parent == Path("recipes") else str(path)
    say(f"{path} is written: read it, and change what you know better. Then:")
    say(f"  toolkit plan {asked_for}           # is it worth it, what will it take")
    say(f"  toolkit merge choose {asked_for}   # all of it, to the chosen merge")


def _ask_for_the_rest(request: InitRequest) -> InitRequest:
    """Ask for what was not given; what the files answer is not asked."""
    from dataclasses import replace

    if request.model is None:
        request = replace(request, model=typer.prompt("General model (a folder, or org/name)"))
    if not request.documents:
        given = typer.prompt("Text of your domain (a file, folder or glob)")
        request = replace(request, documents=(given,))
        if not request.general:
            given = typer.prompt("General text, if you have some (Enter: none)", default="")
            request = replace(request, general=(given,) if given else ())
    return request
