"""Merges of merges: a file of several YAML documents, each a merge, as mergekit-multi takes it.

A document with a `name:` makes an intermediate model, which the others name as they name folders;
the one without a name (or else the last) is the result. Intermediate models stand beside the
result while they are needed, and no longer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.references import parse_reference
from toolkit.errors import ConfigError, warn
from toolkit.leftovers import scratch_folder
from toolkit.load_yaml import load_yaml_documents
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.plan import MergePlan
from toolkit.merge.to_disk import run_merge
from toolkit.progress import say
from toolkit.stage import refuse_taken, write_atomically


@dataclass(frozen=True)
class MergeStep:
    """One merge of a graph.

    Attributes:
        name: what later merges call its result; None for the last one.
        config: what it does.
        needs: names of the intermediate models that it takes.
    """

    name: str | None
    config: MergeConfig
    needs: frozenset[str]


@dataclass(frozen=True)
class MergeGraph:
    """Merges in an order in which each has what it needs; the last one is the result.

    Attributes:
        steps: at least one.
        text: the file, to be kept beside the result.
    """

    steps: tuple[MergeStep, ...]
    text: str

    @property
    def result(self) -> MergeConfig:
        """The configuration of the last merge."""
        return self.steps[-1].config


def load_merge_graph(path: Path) -> MergeGraph:
    """Read a file of one or several merges.

    Raises:
        ConfigError: the file cannot be read or has faults, all at once; names are given twice,
            several documents have none, or merges need each other in a circle.
    """
    documents = load_yaml_documents(path)
    places = [str(path)] if len(documents) == 1 else [
        f"{path}, document {number}" for number in range(1, len(documents) + 1)
    ]  # fmt: skip
    document_names = [
        _name_of(document, place) for document, place in zip(documents, places, strict=True)
    ]
    if len(documents) == 1:
        document_names = [None]
    faults: list[str] = []
    merge_configs: list[MergeConfig] = []
    for document, place in zip(documents, places, strict=True):
        try:
            # Left out here, where it has a meaning: a merge by itself passes over it with a
            # warning.
            plain_values = {key: value for key, value in document.items() if key != "name"}
            merge_configs.append(parse_merge_config(plain_values, where=place))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    last_number = _last_of(document_names, path)
    known = {name: number for number, name in enumerate(document_names) if name is not None}
    _refuse_repeated(document_names, path)
    merge_steps = [
        MergeStep(None if number == last_number else name, config, _needs(config, known))
        for number, (name, config) in enumerate(zip(document_names, merge_configs, strict=True))
    ]
    merge_order = list(_ordered(last_number, merge_steps, known, path, ()))
    for number, name in enumerate(document_names):
        if number not in merge_order:
            warn(f"{path}: {name}: nothing takes it, so it is not made.")
    file_text = path.read_text(encoding="utf-8")
    return MergeGraph(tuple(merge_steps[number] for number in merge_order), file_text)


def _name_of(document: Mapping[str, object], where: str) -> str | None:
    name = document.get("name")
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip() or "+" in name:
        raise ConfigError(f"{where}: name: must be a word without + (got {name!r}).")
    return name


def _last_of(names: Sequence[str | None], path: Path) -> int:
    unnamed_numbers = [number for number, name in enumerate(names) if name is None]
    if len(unnamed_numbers) > 1:
        unnamed_places = ", ".join(str(number + 1) for number in unnamed_numbers)
        raise ConfigError(
            f"{path}: documents {unnamed_places} have no name; one may have none, the result's. "
            "Give the others a `name:`, by which later ones take them."
        )
    return unnamed_numbers[0] if unnamed_numbers else len(names) - 1


def _refuse_repeated(names: Sequence[str | None], path: Path) -> None:
    given_names = [name for name in names if name is not None]
    if repeated := sorted({name for name in given_names if given_names.count(name) > 1}):
        raise ConfigError(f"{path}: name: {', '.join(repeated)} stands twice; each needs its own.")


def _needs(config: MergeConfig, known: Mapping[str, int]) -> frozenset[str]:
    """Intermediate models among those that a merge names, with an adapter or without."""
    model_paths = {parse_reference(text).model.path for text in config.model_names()}
    return frozenset(model_paths & set(known))


def _ordered(
    number: int,
    steps: Sequence[MergeStep],
    known: Mapping[str, int],
    path: Path,
    above: tuple[int, ...],
) -> Iterator[int]:
    """Numbers of the merges that one needs, each once and before what needs it, and its own."""
    # `above` are the merges that wait for this one; to come upon one of them again is a circle.
    if number in above:
        circle_text = " -> ".join(
            next((name for name, n in known.items() if n == member), "the result")
            for member in (*above[above.index(number) :], number)
        )
        raise ConfigError(f"{path}: merges need each other in a circle: {circle_text}.")
    earlier_merges: list[int] = []
    for name in sorted(steps[number].needs, key=lambda name: known[name]):
        for earlier in _ordered(known[name], steps, known, path, (*above, number)):
            if earlier not in earlier_merges:
                earlier_merges.append(earlier)
    yield from earlier_merges
    yield number


def run_merge_graph(graph: MergeGraph, out: Path, **settings: Any) -> MergePlan:
    """Run all merges of a graph; only the last one's model stays.

    Args:
        graph: merges in their order.
        out: the folder to make; it must not exist, or be empty.
        settings: of `run_merge`, for each of them.

    Returns:
        The plan of the last merge.

    Raises:
        MergeError: models do not fit each other, or `out` is taken.
        CheckpointError: a model cannot be read, or the disk is full.
    """
    if len(graph.steps) == 1:
        return run_merge(graph.result, out, **settings)
    refuse_taken(out)
    for step in graph.steps:  # a model that is not there is found before the first is merged
        for text in step.config.model_names():
            if parse_reference(text).model.path not in step.needs:
                Models().checkpoint(text)
    with scratch_folder(out) as scratch:
        made_folders: dict[str, Path] = {}
        for step_number, step in enumerate(graph.steps[:-1]):
            assert step.name is not None  # noqa: S101  (only the last has none)
            step_folder = scratch / str(step_number)
            say(f"{step.name} ({step_number + 1} of {len(graph.steps)})")
            run_merge(
                step.config, step_folder, folders=dict(made_folders), step=step.name, **settings
            )
            made_folders[step.name] = step_folder
            later = frozenset[str]().union(*(s.needs for s in graph.steps[step_number + 1 :]))
            # As soon as nothing later needs it: a large graph's models would not all fit.
            for made_name in [made_name for made_name in made_folders if made_name not in later]:
                shutil.rmtree(made_folders.pop(made_name))
        last_plan = run_merge(graph.result, out, folders=dict(made_folders), **settings)
        # The result's own configuration names models that are gone: the whole file is kept.
        with write_atomically(out / "mergekit_config.yml") as file:
            file.write(graph.text)
    return last_plan
