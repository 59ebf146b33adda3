"""The search space: mergekit YAML in which numbers to be found are written `{search: …}`.

weight: {search: {name: alpha, grid: [0.4, 0.6]}}   a number to be found, from a grid
weight: {search: 1 - alpha}                          what is left of another one
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config import load_yaml
from toolkit.errors import ConfigError, did_you_mean
from toolkit.merge.config import MergeConfig, parse_merge_config

GENERAL, SPECIALIST = "general", "specialist"
"""What the two models are called in `merges/*.yaml`."""

_COMPLEMENT = re.compile(r"^\s*1\s*-\s*([A-Za-z_]\w*)\s*$")


@dataclass(frozen=True)
class Candidate:
    """One merge to be tried.

    Attributes:
        name: for people, such as `ties density=0.2 weight=1`.
        config: the merge, with `general` and `specialist` as model names.
    """

    name: str
    config: MergeConfig


def endpoint(name: str) -> Candidate:
    """One of the two models as a merge, so that both are always among the candidates."""
    models = [
        {"model": model, "parameters": {"weight": 1.0 if model == name else 0.0}}
        for model in (GENERAL, SPECIALIST)
    ]
    config = {"merge_method": "linear", "models": models}
    return Candidate(name, parse_merge_config(config, where=name))


def load_candidates(names: tuple[str, ...], folder: Path) -> list[Candidate]:
    """All candidates: the endpoints, then every combination of every file's grids.

    Raises:
        ConfigError: a file is unknown, is not a merge configuration, or names other models.
    """
    candidates = [endpoint(GENERAL), endpoint(SPECIALIST)]
    for name in names:
        path = folder / f"{name}.yaml"
        if not path.is_file():
            known = sorted(item.stem for item in folder.glob("*.yaml"))
            raise ConfigError(
                f"search.merges: no {name!r} in {folder}/{did_you_mean(name, known)} "
                f"There are: {', '.join(known) or 'none'}."
            )
        candidates += list(_expand(name, load_yaml(path), str(path)))
    return candidates


def _expand(name: str, data: Mapping[str, Any], where: str) -> Iterator[Candidate]:
    grids: dict[str, list[float]] = {}
    _collect(data, where, "", grids)
    for values in itertools.product(*grids.values()):
        chosen = dict(zip(grids, values, strict=True))
        label = " ".join([name, *(f"{key}={value:g}" for key, value in sorted(chosen.items()))])
        config = parse_merge_config(_fill(data, chosen, where), where=where)
        if unknown := set(config.model_names()) - {GENERAL, SPECIALIST}:
            raise ConfigError(
                f"{where}: names the model {sorted(unknown)[0]!r}; here there are only "
                f"{GENERAL} and {SPECIALIST}."
            )
        yield Candidate(label, config)


def _collect(node: Any, where: str, key: str, grids: dict[str, list[float]]) -> None:
    if isinstance(node, Mapping):
        if "search" in node:
            _add_grid(node, where, key, grids)
            return
        for name, value in node.items():
            _collect(value, where, f"{key}.{name}".lstrip("."), grids)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            _collect(value, where, f"{key}.{number}", grids)


def _add_grid(node: Mapping[str, Any], where: str, key: str, grids: dict[str, list[float]]) -> None:
    wanted = node["search"]
    if len(node) > 1:
        raise ConfigError(f"{where}: {key}: `search` must stand alone (got {dict(node)!r}).")
    if isinstance(wanted, str) and _COMPLEMENT.match(wanted):
        return
    if not isinstance(wanted, Mapping) or set(wanted) - {"name", "grid"} or "grid" not in wanted:
        raise ConfigError(
            f"{where}: {key}.search: must be {{name: …, grid: […]}} or `1 - NAME` (got {wanted!r})."
        )
    grid = wanted["grid"]
    numbers = [v for v in grid if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if not isinstance(grid, list) or not grid or len(numbers) != len(grid):
        raise ConfigError(f"{where}: {key}.search.grid: must be a list of numbers (got {grid!r}).")
    name = str(wanted.get("name", key.rsplit(".", 1)[-1]))
    if name in grids:
        raise ConfigError(f"{where}: {key}.search.name: {name!r} stands twice; names must differ.")
    grids[name] = [float(value) for value in numbers]


def _fill(node: Any, chosen: Mapping[str, float], where: str, key: str = "") -> Any:
    if isinstance(node, Mapping):
        if "search" not in node:
            return {n: _fill(v, chosen, where, f"{key}.{n}".lstrip(".")) for n, v in node.items()}
        wanted = node["search"]
        if isinstance(wanted, Mapping):
            return chosen[str(wanted.get("name", key.rsplit(".", 1)[-1]))]
        match = _COMPLEMENT.match(wanted)
        other = match[1] if match else ""
        if other not in chosen:
            raise ConfigError(
                f"{where}: {key}.search: speaks of {other!r}, which has no grid"
                f"{did_you_mean(other, chosen)}"
            )
        return round(1.0 - chosen[other], 12)
    if isinstance(node, list):
        return [_fill(value, chosen, where, f"{key}.{n}") for n, value in enumerate(node)]
    return node
