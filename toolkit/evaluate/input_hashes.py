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
from toolkit.stage import hash_file, hash_json


def evaluation_inputs(section: EvaluateSection) -> dict[str, str]:
    """By name, hashes of all of the user's files that figures depend on: of every stage that
    scores, the inputs.

    Raises:
        DataError: a file of questions is missing.
    """
    behavior_files = section.behavior.files if section.behavior is not None else ()
    hashes_by_name = {
        f"prompts/{name}": hash_file(path) if (path := Path(name)).is_file() else "missing"
        for name in (*section.retention.files, *behavior_files)
    }
    for choice_section in section.multiple_choice:
        if choice_section.files is not None:
            source = SourceSection(role="general", files=choice_section.files)
            hashes_by_name |= input_hashes({f"evaluate/choices/{choice_section.name}": source})
    for task in section.tasks:
        if task.include_path is not None and Path(task.include_path).is_dir():
            hashes_by_name[f"evaluate/tasks/{task.task}"] = hash_json(_task_hashes(task))
    return hashes_by_name


def _task_hashes(section: TaskSection) -> dict[str, str]:
    """Of the YAML files of a task or group, what they include, their code and their data; of all of
    the folder where one of its files cannot be followed."""
    task_folder = Path(section.include_path or ".")
    try:
        task_files = set(_TaskFiles(task_folder).of(section.task))
    # Hashing too much costs a cache entry; hashing too little would take old figures for new ones.
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        task_files = {path for path in task_folder.rglob("*") if path.is_file()}
    return {path.as_posix(): known_hash(path) for path in sorted(task_files)}


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
        seen_paths: set[Path] = set()
        waiting_paths = [
            task_path
            for task_path, task_values in self._read.items()
            if _defines(task_values, name)
        ]
        while waiting_paths:
            task_path = waiting_paths.pop()
            if task_path in seen_paths:
                continue
            seen_paths.add(task_path)
            yield task_path
            # Code and data lead to no further files.
            if task_path.suffix != ".yaml":
                continue
            task_values = self._read.get(task_path) or _load(task_path)
            # A plain task names itself here, which must not lead back to its own file.
            for task_name in _names(task_values.get("task")):
                waiting_paths += [
                    p for p, v in self._read.items() if p != task_path and _defines(v, task_name)
                ]
            waiting_paths += _beside(task_path, task_values)


def _load(path: Path) -> dict[str, Any]:
    refuse_hostile_yaml(path)
    yaml_values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  (a SafeLoader)
    return yaml_values if isinstance(yaml_values, dict) else {}


def _defines(values: Mapping[str, Any], name: str) -> bool:
    task_tags = values.get("tag") or ()
    return name in (values.get("task"), values.get("group")) or name in _names(task_tags)


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
    included_files = values.get("include") or ()
    included_names = [included_files] if isinstance(included_files, str) else list(included_files)
    named_files = [file for name in included_names if (file := path.parent / name).is_file()]
    # Which file a `!function` stands in is lm-eval's to resolve, and it may import its neighbors:
    # all code beside the task counts.
    if _has_code(values):
        named_files += path.parent.glob("*.py")
    data_settings = values.get("dataset_kwargs")
    data_places = [values.get("dataset_path")]
    if isinstance(data_settings, Mapping):
        data_places += [*_strings(data_settings.get("data_files")), data_settings.get("data_dir")]
    # Most paths are names on a hub: only what exists here is a file.
    for data_place in data_places:
        if isinstance(data_place, str):
            named_files += _local_files(data_place)
    task_entries = values.get("task")
    for task_entry in task_entries if isinstance(task_entries, list) else ():
        if isinstance(task_entry, Mapping):
            named_files += _beside(path, task_entry)
    return named_files


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
    local_path = Path(place)
    if local_path.is_file():
        return [local_path]
    if local_path.is_dir():
        return [file for file in local_path.rglob("*") if file.is_file()]
    return [Path(name) for name in glob.glob(place) if Path(name).is_file()]
