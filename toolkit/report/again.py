"""Everything that is needed to make the same thing again, with nothing of this machine in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path

import yaml

from toolkit import __version__
from toolkit.report.html import PageSection, folded, paragraph
from toolkit.stage import TRACKED_PACKAGES


@dataclass(frozen=True)
class Again:
    """What it takes to make the same thing again.

    Attributes:
        commands: lines for a terminal.
        recipe: YAML of the recipe.
        versions: versions of the packages that figures depend on.
        hashes: sha256 of inputs and outputs, by what they are.
    """

    commands: tuple[str, ...]
    recipe: str
    versions: Mapping[str, str]
    hashes: Mapping[str, str]


def again_of(
    name: str, recipe: Mapping[str, object], hashes: Mapping[str, str], *, trains: bool = True
) -> Again:
    """What it takes to make a merge again.

    Args:
        name: name of the recipe.
        recipe: its values as given, as from `model_dump(mode="json", exclude_unset=True)`.
        hashes: sha256 of inputs and outputs, by what they are.
        trains: whether the recipe trains its specialist.
    """
    merge_command = f"make merge DOMAIN={name}"
    return Again(
        (f"make cpt DOMAIN={name}", merge_command) if trains else (merge_command,),
        yaml.safe_dump(_portable(_without_storage(recipe)), sort_keys=False, allow_unicode=True),
        {
            "cpt-toolkit": __version__,
            **{package: metadata.version(package) for package in TRACKED_PACKAGES},
        },
        dict(hashes),
    )


def _without_storage(recipe: Mapping[str, object]) -> Mapping[str, object]:
    """Where workers met changes no merge, and its URL may hold a password."""
    search = recipe.get("search")
    if not isinstance(search, Mapping):
        return recipe
    return {**recipe, "search": {key: search[key] for key in search if key != "storage"}}


def _portable(value: object) -> object:
    """Absolute paths by their last part: where a file lies is nobody's business."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value]
    # Of a path the last part says which file it was; the folders above it name people and machines.
    if isinstance(value, str) and _is_place(value):
        return Path(value).name
    return value


def _is_place(text: str) -> bool:
    """Whether a text is an absolute path: one below a folder that is there, or one of several parts
    in one word. A prompt may begin with a slash too.

    >>> [_is_place(text) for text in ("/no_think Be brief.", "/no_think", "/", "/mnt/x/news.jsonl")]
    [False, False, False, True]
    """
    parts = Path(text).parts
    if not Path(text).is_absolute() or len(parts) < 2 or "\n" in text:
        return False
    # Not Path.exists, which raises where a text is too long to be a name.
    is_there = os.path.exists(parts[0] + parts[1])  # noqa: PTH110
    return is_there or (len(parts) > 2 and not any(map(str.isspace, text)))


def again_section(again: Again | None, merge_yaml: str) -> PageSection:
    """Commands, recipe, merge, versions and hashes."""
    body = ""
    if again:
        commands = "\n".join(again.commands)
        body += paragraph("With the recipe below in recipes/, and the same versions:")
        body += f"<pre>{escape(commands)}</pre>"
    body += folded("The chosen merge (merge.yaml, mergekit's dialect)", merge_yaml)
    if again:
        versions = "\n".join(f"{name}=={version}" for name, version in again.versions.items())
        hashes = "\n".join(f"{digest}  {name}" for name, digest in again.hashes.items())
        body += folded("The recipe", again.recipe)
        body += folded("Versions", versions)
        body += folded("sha256 of what went in and came out", hashes)
    return PageSection("again", "Run it again", body)
