"""Hashes of the files that an `evaluate` section reads: questions, task files, and their data."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.data.config import SourceSection
from toolkit.data.files import input_hashes
from toolkit.evaluate.config import EvaluateSection, TaskSection
from toolkit.file_hashes import known_hash
from toolkit.load_yaml import refuse_hostile_yaml
from toolkit.stage import hash_json


def evaluation_inputs(section: EvaluateSection) -> dict[str, str]:
    """By name, hashes of the local files that figures depend on.

    Raises:
        DataError: a file of questions is missing.
    """
    hashes: dict[str, str] = {}
    for choices in section.multiple_choice:
        if choices.files is not None:
            source = SourceSection(role="general", files=choices.files)
            hashes |= input_hashes({f"evaluate/choices/{choices.name}": source})
    for task in section.tasks:
        if task.include_path is not None and Path(task.include_path).is_dir():
            hashes[f"evaluate/tasks/{task.task}"] = hash_json(_task_hashes(task))
    return hashes


def _task_hashes(section: TaskSection) -> dict[str, str]:
    """Of the YAML files of a task or group, what they include, their code and their data; of all of
    the folder where one of its files cannot be followed."""
    folder = Path(section.include_path or ".")
    try:
        files = set(_TaskFiles(folder).of(section.task))
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        files = {path for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix(): known_hash(path) for path in sorted(files)}


class _Loader(yaml.SafeLoader):
    """Takes `!function` and other tags of lm-eval for what they are written as."""


def _as_written(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return {f"!{tag}": loader.construct_scalar(node)}
    return None


_Loader.add_multi_constructor("!", _as_written)


class _TaskFiles:
    """The YAML files below a folder, by what they define.

    Raises:
        yaml.YAMLError: one cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._read = {path: _load(path) for path in sorted(folder.rglob("*.yaml"))}

    def of(self, name: str) -> Iterator[Path]:
        """All files that a task, group or tag is made of."""
        seen: set[Path] = set()
        waiting = [path for path, values in self._read.items() if _defines(values, name)]
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            yield path
            if path.suffix != ".yaml":
                continue
            values = self._read.get(path) or _load(path)
            for other in _names(values.get("task")):
                waiting += [p for p, v in self._read.items() if p != path and _defines(v, other)]
            waiting += _beside(path, values)


def _load(path: Path) -> dict[str, Any]:
    refuse_hostile_yaml(path)
    values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  (a SafeLoader)
    return values if isinstance(values, dict) else {}


def _defines(values: Mapping[str, Any], name: str) -> bool:
    tags = values.get("tag") or ()
    return name in (values.get("task"), values.get("group")) or name in _names(tags)


def _names(value: Any) -> Iterator[str]:
    """Names of tasks in the list of a group, whose entries may be tasks with settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _names(value.get("task"))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _names(entry)


def _beside(path: Path, values: Mapping[str, Any]) -> list[Path]:
    """What a task file names: files it includes, code beside it, and local data."""
    included = values.get("include") or ()
    names = [included] if isinstance(included, str) else list(included)
    files = [file for name in names if (file := path.parent / name).is_file()]
    if _has_code(values):
        files += path.parent.glob("*.py")
    settings = values.get("dataset_kwargs")
    places = [values.get("dataset_path")]
    if isinstance(settings, Mapping):
        places += [*_strings(settings.get("data_files")), settings.get("data_dir")]
    for place in places:
        if isinstance(place, str):
            files += _local_files(place)
    entries = values.get("task")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping):
            files += _beside(path, entry)
    return files


def _has_code(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(str(key).startswith("!") or _has_code(entry) for key, entry in value.items())
    return isinstance(value, (list, tuple)) and any(map(_has_code, value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _strings(entry)


def _local_files(place: str) -> list[Path]:
    """Files at a path or pattern, of a folder all below it; none where it is no local one."""
    path = Path(place)
    if path.is_file():
        return [path]
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    return [Path(name) for name in glob.glob(place) if Path(name).is_file()]
