"""What is public of a run's files: names in place of folders, nothing of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from toolkit.errors import PublishError
from toolkit.load_yaml import parse_json
from toolkit.publish.config import PublishSection

_OF_THIS_MACHINE = {
    "_name_or_path",
    "_model_name_or_path",
    "name_or_path",
    "is_local",
    "local_files_only",
    "_commit_hash",
}
"""Keys that libraries write into model and tokenizer settings, and that say where they ran."""


def public_reference(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


def public_merge(
    config: Mapping[str, object], places: Mapping[str, Path], names: Mapping[str, str]
) -> dict[str, object]:
    """A merge configuration with public names in place of folders.

    Args:
        config: as the merge stage wrote it.
        places: the parents' folders, by role.
        names: their public names, by role.

    Raises:
        PublishError: it refers to a model that is none of the parents.
    """
    known = {text: _role_of(text, places) for text in set(_references(config))}
    for text, role in known.items():
        if role is None:
            raise PublishError(
                f"merge.yaml: {text} is none of the run's models ("
                + ", ".join(f"{role}: {path}" for role, path in places.items())
                + "), so it has no public name; run the merge stage again."
            )

    # Under any key: the source of a tokenizer may be a model too.
    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: rename(value) for key, value in node.items()}
        if isinstance(node, list):
            return [rename(item) for item in node]
        return names[str(known[node])] if isinstance(node, str) and node in known else node

    return dict(rename(dict(config)))


def parents_of(config: Mapping[str, object], places: Mapping[str, Path]) -> set[str]:
    """Roles of the models that a merge configuration refers to."""
    found_roles = (_role_of(text, places) for text in set(_references(config)))
    return {role for role in found_roles if role is not None}


def _role_of(text: str, places: Mapping[str, Path]) -> str | None:
    """By path; by the folder's name where the run was moved since; by the role, which a merge
    writes where two folders have one name."""
    for role, path in places.items():
        if Path(text).resolve() == path.resolve():
            return role
    folder_name = PurePosixPath(text).name
    # Two roles that it may mean: a guess might publish the wrong name, so there is none.
    roles_named = {role for role, path in places.items() if path.name == folder_name}
    if len(roles_named) != 1 and text == f"./{folder_name}" and folder_name in places:
        return folder_name
    is_other_role = folder_name in places and folder_name not in roles_named
    return roles_named.pop() if len(roles_named) == 1 and not is_other_role else None


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("model", "base_model") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


def public_recipe(
    recipe: Mapping[str, object], section: PublishSection, general: str, revision: str | None
) -> dict[str, object]:
    """The recipe as others may have it.

    A local general model becomes its public name, a local specialist the name of its folder. The
    files of a source that has a public name become that name; other paths stay, and absolute ones
    are what the check for leaks refuses.

    Args:
        recipe: plain values that its author set.
        section: its section on publishing.
        general: public name of the general model.
        revision: of that.
    """
    # A copy all through, as values deep in it are replaced.
    plain_recipe = json.loads(json.dumps(recipe))
    model_values = plain_recipe["model"]
    if "path" in model_values:
        del model_values["path"]
        model_values["hub"] = general
        if revision is not None:
            model_values["revision"] = revision
    named = (plain_recipe.get("specialist") or {}, *plain_recipe.get("specialists", {}).values())
    for specialist_values in named:
        for key in ("path", "adapter"):
            # What is no folder here is a name on the hub, which others can use as it is.
            if key in specialist_values and Path(str(specialist_values[key])).exists():
                specialist_values[key] = PurePosixPath(specialist_values[key]).name
    for source_name, source in plain_recipe["data"]["sources"].items():
        known = section.sources.get(source_name)
        if known is not None and known.dataset is not None and "files" in source:
            source["files"] = [known.dataset]
    # Where workers met changes no merge, and its URL may hold a password.
    plain_recipe.get("search", {}).pop("storage", None)
    published = plain_recipe.get("publish", {})
    main_parents = (published.get(role, {}) for role in ("general", "specialist"))
    for parent_values in (*main_parents, *published.get("parents", {}).values()):
        for file_key in ("license_file", "notice_file"):
            parent_values.pop(file_key, None)
    return dict(plain_recipe)


def public_json(path: Path) -> bytes:
    """A settings file without what it says of this machine; its own bytes where that is nothing."""
    file_bytes = path.read_bytes()
    # The file's own bytes where nothing is left out: a round trip through JSON would change its
    # hash.
    values = parse_json(file_bytes, str(path), PublishError)
    if not isinstance(values, dict) or not _OF_THIS_MACHINE & set(values):
        return file_bytes
    public_values = {key: value for key, value in values.items() if key not in _OF_THIS_MACHINE}
    return (json.dumps(public_values, indent=2, ensure_ascii=False) + "\n").encode()


def to_yaml(values: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
