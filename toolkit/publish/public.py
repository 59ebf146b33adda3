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
    config: Mapping[str, Any], places: Mapping[str, Path], names: Mapping[str, str]
) -> dict[str, Any]:
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

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: rename(value) for key, value in node.items()}
        if isinstance(node, list):
            return [rename(item) for item in node]
        return names[str(known[node])] if isinstance(node, str) and node in known else node

    return dict(rename(dict(config)))


def parents_of(config: Mapping[str, Any], places: Mapping[str, Path]) -> set[str]:
    """Roles of the models that a merge configuration refers to."""
    roles = (_role_of(text, places) for text in set(_references(config)))
    return {role for role in roles if role is not None}


def _role_of(text: str, places: Mapping[str, Path]) -> str | None:
    """By path; by the folder's name where the run was moved since."""
    for role, path in places.items():
        if Path(text).resolve() == path.resolve():
            return role
    last = PurePosixPath(text).name
    found = [role for role, path in places.items() if path.name == last]
    return found[0] if len(found) == 1 else None


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
    recipe: Mapping[str, Any], section: PublishSection, general: str, revision: str | None
) -> dict[str, Any]:
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
    plain = json.loads(json.dumps(recipe))
    model = plain["model"]
    if "path" in model:
        del model["path"]
        model["hub"] = general
        if revision is not None:
            model["revision"] = revision
    for specialist in (plain.get("specialist") or {}, *plain.get("specialists", {}).values()):
        for key in ("path", "adapter"):
            if key in specialist and Path(str(specialist[key])).exists():
                specialist[key] = PurePosixPath(specialist[key]).name
    for name, source in plain["data"]["sources"].items():
        known = section.sources.get(name)
        if known is not None and known.dataset is not None and "files" in source:
            source["files"] = [known.dataset]
    for role in ("general", "specialist"):
        for key in ("license_file", "notice_file"):
            plain.get("publish", {}).get(role, {}).pop(key, None)
    return dict(plain)


def public_json(path: Path) -> bytes:
    """A settings file without what it says of this machine; its own bytes where that is nothing."""
    data = path.read_bytes()
    values = parse_json(data, str(path), PublishError)
    if not isinstance(values, dict) or not _OF_THIS_MACHINE & set(values):
        return data
    kept = {key: value for key, value in values.items() if key not in _OF_THIS_MACHINE}
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def to_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
