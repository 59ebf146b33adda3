"""The search space: mergekit YAML in which what is to be found is written `{search: …}`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from toolkit.errors import ConfigError, Fault, sentence_end
from toolkit.load_yaml import load_yaml
from toolkit.merge.config import MergeConfig, Rounding, parse_merge_config
from toolkit.merge.parameters import check_parameters, parameter_places
from toolkit.merge.registry import get_method
from toolkit.search.unknowns import (
    Options,
    Range,
    Unknown,
    Value,
    complement_of,
    default_name,
    parse_unknown,
)
from toolkit.section import replace_values
from toolkit.shipped import find_in, names_in
from toolkit.stage import hash_json

GENERAL, SPECIALIST = "general", "specialist"
"""What the two models are called in `merges/*.yaml`; a recipe may have further ones by name."""

SPECIALISTS = "specialists"
"""Stands in `merges/*.yaml` where a model does, and means all specialists: one entry for each."""

UNIFORM_MEAN = "uniform mean"
"""Candidate in place of the specialist where there are several: their mean, all alike."""

RESERVED = (GENERAL, SPECIALIST, SPECIALISTS, "merge")
"""Names that no further model and no specialist may have."""

ONE_SPECIALIST: tuple[str, ...] = (SPECIALIST,)
"""The specialists of a recipe that has one."""

SIMPLEX = "simplex"
"""Weights of all specialists that are to be found together: none below 0, their sum 1."""

_MOST_CHECKS = 256  # combinations of choices that are tried out when a file is read


@dataclass(frozen=True)
class Candidate:
    """One merge to be tried.

    Attributes:
        name: for people, such as `ties density=0.2 weight=1`.
        config: the merge, with `general` and `specialist` as model names.
        parameters: what was found or given, by name.
    """

    name: str
    config: MergeConfig
    parameters: Mapping[str, Value] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Hash of the merge itself: candidates of different names may be one and the same."""
        return hash_json(self.config.model_dump(mode="json"))


@dataclass(frozen=True)
class MergeSpace:
    """One `merges/*.yaml`.

    Attributes:
        name: of the file.
        where: its path, for messages.
        template: its plain values, with `{search: …}` in them.
        unknowns: what is to be found, by name.
        models: that it may name.
        rounding: rounding of its merges, where the file does not say its own.
    """

    name: str
    where: str
    template: Mapping[str, object]
    unknowns: Mapping[str, Unknown]
    models: tuple[str, ...] = (GENERAL, SPECIALIST)
    rounding: Rounding = "nearest"

    def candidate(self, values: Mapping[str, Value]) -> Candidate:
        """The merge with these values.

        Where the method itself is searched, parameters that the chosen one lacks are left out.

        Raises:
            ConfigError: the merge that results is not valid.
        """
        used_template: Mapping[str, object] = self.template
        method = used_template.get("merge_method")
        if isinstance(method, Mapping):
            chosen = _fill(method, values, self.where, "merge_method")
            used_template = _without_unknown({**used_template, "merge_method": chosen}, str(chosen))
        named_unknowns: dict[str, Unknown] = {}
        # With the method as it was searched for: its own name is among the values that are kept.
        _collect({**used_template, "merge_method": method}, self.where, "", named_unknowns)
        kept_values = {name: values[name] for name in self.unknowns if name in named_unknowns}
        config = parse_merge_config(_fill(used_template, values, self.where), where=self.where)
        check_parameters(config, get_method(config.merge_method))
        if unknown := set(config.model_names()) - set(self.models):
            raise ConfigError(
                f"{self.where}: names the model {sorted(unknown)[0]!r}; here there are only "
                f"{', '.join(self.models[:-1])} and {self.models[-1]} (more under the recipe's "
                "`models`)."
            )
        value_words = [f"{name}={_short(value)}" for name, value in sorted(kept_values.items())]
        rounded_config = with_rounding(config, self.rounding)
        return Candidate(" ".join([self.name, *value_words]), rounded_config, kept_values)

    def at(self, shares: Sequence[float]) -> dict[str, Value]:
        """Values at a point of the unit cube, one coordinate an unknown in the order of names."""
        pairs = zip(self.unknowns.items(), shares, strict=True)
        return {name: unknown.at(share) for (name, unknown), share in pairs}


def is_endpoint(name: str) -> bool:
    """Whether a candidate is the general model, or the specialist or what stands for several."""
    return name in (GENERAL, SPECIALIST, UNIFORM_MEAN)


Named = TypeVar("Named")


def find_sweep_end(by_name: Mapping[str, Named]) -> Named:
    """Of what is kept by candidates' names that of the specialist, or of the mean of several."""
    return by_name[SPECIALIST] if SPECIALIST in by_name else by_name[UNIFORM_MEAN]


def endpoint(name: str, specialists: Sequence[str] = ONE_SPECIALIST) -> Candidate:
    """An end of the sweep as a merge, so that both are always among the candidates."""
    return Candidate(name, _between(float(name != GENERAL), name, specialists))


def alone(name: str) -> Candidate:
    """One of several specialists as a merge."""
    models = [{"model": name, "parameters": {"weight": 1.0}}]
    values = {"merge_method": "linear", "models": models}
    return Candidate(name, parse_merge_config(values, where=f"specialists.{name}"))


def sweep_point(
    alpha: float,
    rounding: Rounding = "nearest",
    specialists: Sequence[str] = ONE_SPECIALIST,
    start: str | None = None,
) -> Candidate:
    """A point of the plain sweep, `general + α·(specialist − start)`, that all else must beat.

    Where training started from the general model, that is the weighted mean of the two, or of the
    general model and the uniform mean of several specialists, and α 1 the specialist. Else it is
    task arithmetic: the mean would undo, by the fraction α, what made the general model of its
    base.

    Args:
        alpha: fraction of what training changed.
        rounding: rounding of the merge.
        specialists: names of the specialists.
        start: name of the model that training started from, where it is not the general one.
    """
    if start is None:
        config = with_rounding(_between(alpha, "search.sweep", specialists), rounding)
        return Candidate(f"linear alpha={alpha:g}", config, {"alpha": float(alpha)})
    models = [
        {"model": model, "parameters": {"weight": weight}}
        for model, weight in ((GENERAL, 1.0), (SPECIALIST, float(alpha)))
    ]
    values = {"merge_method": "task_arithmetic", "base_model": start, "models": models}
    config = with_rounding(parse_merge_config(values, where="search.sweep"), rounding)
    return Candidate(f"residual alpha={alpha:g}", config, {"alpha": float(alpha)})


def alphas_by_name(candidates: Iterable[Candidate]) -> dict[str, float]:
    """The places of candidates on the plain sweep, by their names; others are left out.

    Where training started from the general model its ends are the two models. Else it begins at the
    general model, and the specialist is a model beside it.
    """
    all_candidates = list(candidates)
    residual = {c.name: float(c.parameters["alpha"]) for c in all_candidates if _is_residual(c)}
    if residual:
        return {GENERAL: 0.0, **residual}
    means = {c.name: float(c.parameters["alpha"]) for c in all_candidates if _is_mean(c)}
    return {GENERAL: 0.0, SPECIALIST: 1.0, UNIFORM_MEAN: 1.0, **means}


def _is_mean(candidate: Candidate) -> bool:
    return candidate.config.merge_method == "linear" and _is_sweep_point(candidate, None)


def _is_residual(candidate: Candidate) -> bool:
    start = candidate.config.base_model
    return start not in {None, GENERAL, SPECIALIST} and _is_sweep_point(candidate, start)


def _is_sweep_point(candidate: Candidate, start: str | None) -> bool:
    """By the merge itself: a file's candidate may have an alpha alone and mean another thing by
    it."""
    config, alpha = candidate.config, candidate.parameters.get("alpha")
    specialists = [name for name in config.model_names() if name not in {GENERAL, start}]
    if len(candidate.parameters) != 1 or not isinstance(alpha, (int, float)) or not specialists:
        return False
    point = sweep_point(float(alpha), config.rounding or "nearest", specialists, start)
    return candidate.key == point.key


def with_rounding(config: MergeConfig, rounding: Rounding) -> MergeConfig:
    """A merge with the recipe's rounding, where it has none of its own. To the nearest is what a
    merge does that says nothing; it stays unsaid, so that one merge has one key."""
    if config.rounding is not None or rounding == "nearest":
        return config
    return replace_values(config, rounding=rounding)


def _between(alpha: float, where: str, specialists: Sequence[str] = ONE_SPECIALIST) -> MergeConfig:
    share = float(alpha) if len(specialists) == 1 else round(alpha / len(specialists), 12)
    # Rounded, as 1 - 0.9 is 0.09999999999999998: one merge, written or computed, has one key.
    weights = {GENERAL: round(1.0 - alpha, 12), **dict.fromkeys(specialists, share)}
    model_entries = [
        {"model": model, "parameters": {"weight": weight}} for model, weight in weights.items()
    ]
    return parse_merge_config({"merge_method": "linear", "models": model_entries}, where=where)


def load_spaces(
    names: Sequence[str],
    folders: Sequence[Path],
    models: Iterable[str] = (),
    rounding: Rounding = "nearest",
    specialists: tuple[str, ...] = ONE_SPECIALIST,
) -> list[MergeSpace]:
    """The named merge configurations, each checked by filling in its lowest and highest values.

    Args:
        names: of the files, without their ending.
        folders: where they are looked for, in this order.
        models: names of models besides `general` and `specialist`.
        rounding: rounding of merges that do not say their own.
        specialists: names of the specialists.

    Raises:
        ConfigError: a file is unknown, is not a merge configuration, or names other models.
    """
    extra_models = tuple(models)
    spaces = []
    for name in dict.fromkeys(names):
        path = find_space(name, folders)
        template = load_yaml(path)
        spaces.append(read_space(name, template, str(path), extra_models, rounding, specialists))
    return spaces


def find_space(name: str, folders: Sequence[Path]) -> Path:
    """The file of a merge configuration by its name.

    Raises:
        ConfigError: there is no such file; its one fault is at the recipe's key.
    """
    if (path := find_in(folders, name)) is not None:
        return path
    names_there = names_in(folders)
    folder_words = " or ".join(f"{folder}/" for folder in folders) or "merges/"
    fault = Fault(
        "search.merges",
        f"no {name!r} in {folder_words}{sentence_end(name, names_there)} "
        f"There are: {', '.join(names_there) or 'none'}.",
    )
    raise ConfigError.of(fault)


def read_space(
    name: str,
    template: Mapping[str, object],
    where: str,
    models: Iterable[str] = (),
    rounding: Rounding = "nearest",
    specialists: tuple[str, ...] = ONE_SPECIALIST,
) -> MergeSpace:
    """One file's values as a space; see `load_spaces`."""
    template = expand_specialists(template, specialists, where)
    unknowns: dict[str, Unknown] = {}
    _collect(template, where, "", unknowns)
    known_models = (GENERAL, *specialists, *models)
    space = MergeSpace(name, where, template, unknowns, known_models, rounding)
    choices = [
        [(name, value) for value in unknown.values]
        for name, unknown in unknowns.items()
        if isinstance(unknown, Options) and not unknown.ordered
    ]
    for share in (0.0, 1.0):
        # Every choice with either end of all ranges: a method may lack what another one needs.
        for chosen in itertools.islice(itertools.product(*choices), _MOST_CHECKS):
            space.candidate({**space.at([share] * len(unknowns)), **dict(chosen)})
    return space


def expand_specialists(
    template: Mapping[str, object], specialists: Sequence[str], where: str
) -> Mapping[str, object]:
    """A file with an entry for each specialist where it writes `model: specialists`. What is
    searched in the entry is searched for each by itself, and called after it.

    Raises:
        ConfigError: the word stands where one model is meant.
    """

    def expand(node: Any, key: str) -> Any:
        if isinstance(node, list):
            return [entry for n, item in enumerate(node) for entry in entries(item, f"{key}.{n}")]
        if not isinstance(node, Mapping):
            return node
        for name in ("model", "base_model"):
            if node.get(name) == SPECIALISTS:
                raise ConfigError(
                    f"{where}: {f'{key}.{name}'.lstrip('.')}: means all specialists, and one model "
                    "is meant here; name it."
                )
        return {name: expand(value, f"{key}.{name}".lstrip(".")) for name, value in node.items()}

    def entries(item: Any, key: str) -> list[Any]:
        if not isinstance(item, Mapping) or item.get("model") != SPECIALISTS:
            return [expand(item, key)]
        return [
            {**_for_one(item, number, specialists, key), "model": name}
            for number, name in enumerate(specialists)
        ]

    expanded = expand(template, "")
    assert isinstance(expanded, Mapping)  # noqa: S101  (as what it was made from)
    return expanded


def _for_one(node: Any, number: int, specialists: Sequence[str], key: str) -> Any:
    """A specialist's own copy of an entry."""
    if isinstance(node, list):
        return [_for_one(v, number, specialists, f"{key}.{n}") for n, v in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if "search" not in node:
        return {n: _for_one(v, number, specialists, f"{key}.{n}") for n, v in node.items()}
    wanted = node["search"]
    words, kind = _as_words(specialists), default_name(key)
    name = words[number]
    if wanted == SIMPLEX:
        # All but the last are found; `_fill` breaks the stick (see `simplex_weights`).
        names = [f"{kind}_part_{word}" for word in words[:-1]]
        return {"search": {"simplex": names, "number": number}}
    if complement_of(wanted) is not None:
        return node
    if isinstance(wanted, list):
        wanted = {"range": wanted}
    if not isinstance(wanted, Mapping):
        return node
    return {"search": {**wanted, "name": f"{wanted.get('name', kind)}_{name}"}}


def _as_words(names: Sequence[str]) -> list[str]:
    """Each name as a word that no other has.

    >>> _as_words(["law-eu", "law_eu", "news"])
    ['law_eu', 'law_eu_2', 'news']
    """
    words: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name)
        numbered = (f"{word}_{number}" for number in itertools.count(2))
        words.append(word if word not in words else next(w for w in numbered if w not in words))
    return words


def simplex_weights(parts: Sequence[float]) -> list[float]:
    """Weights that sum to 1, from numbers within 0 and 1: each takes its part of what those before
    it left. Equal chances of the parts give equal chances to all weights (a Dirichlet of ones).

    >>> [round(weight, 3) for weight in simplex_weights([1 / 3, 0.5])]
    [0.184, 0.408, 0.408]
    >>> simplex_weights([0.0, 1.0])
    [0.0, 1.0, 0.0]
    """
    left, weights = 1.0, []
    for number, part in enumerate(parts):
        share = left * (1.0 - (1.0 - part) ** (1.0 / (len(parts) - number)))
        weights.append(round(share, 6))
        # Less the weight as it is rounded, so that those written down sum to 1.
        left -= weights[-1]
    return [*weights, round(left, 6)]


def _simplex_of(wanted: Any) -> tuple[list[str], int] | None:
    """Names of the parts, and whose weight is meant; None of anything else."""
    if isinstance(wanted, Mapping) and set(wanted) == {"simplex", "number"}:
        return list(wanted["simplex"]), int(wanted["number"])
    return None


def _searches(node: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, object]]]:
    """Every `{search: …}` with the key it stands at."""
    if isinstance(node, Mapping):
        if "search" in node:
            yield key, node
            return
        for name, value in node.items():
            yield from _searches(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _searches(value, f"{key}.{number}")


def _collect(node: Any, where: str, key: str, unknowns: dict[str, Unknown]) -> None:
    for place, found in _searches(node, key):
        if len(found) > 1:
            raise ConfigError(f"{where}: {place}: `search` must stand alone (got {dict(found)!r}).")
        if complement_of(found["search"]) is not None:
            continue
        if (simplex := _simplex_of(found["search"])) is not None:
            unknowns.update(dict.fromkeys(simplex[0], Range(0.0, 1.0)))
            continue
        name, unknown = parse_unknown(found["search"], where, place)
        if name in unknowns:
            raise ConfigError(
                f"{where}: {place}.search.name: {name!r} stands twice; names must differ."
            )
        unknowns[name] = unknown


def _without_unknown(template: Mapping[str, object], method: str) -> Mapping[str, Any]:
    """The template without the parameters that a method does not have."""
    known = get_method(method).parameters
    # By identity: a mapping of parameters is known by where it stands, not by its keys.
    parameter_nodes = {id(settings) for _, settings in parameter_places(template)}

    def copy(node: Any) -> Any:
        if isinstance(node, Mapping):
            drop = id(node) in parameter_nodes
            return {
                key: copy(value) for key, value in node.items() if not drop or str(key) in known
            }
        return [copy(item) for item in node] if isinstance(node, list) else node

    return dict(copy(template))


def _fill(node: Any, values: Mapping[str, Value], where: str, key: str = "") -> Any:
    if isinstance(node, Mapping):
        if "search" not in node:
            return {n: _fill(v, values, where, f"{key}.{n}".lstrip(".")) for n, v in node.items()}
        if (simplex := _simplex_of(node["search"])) is not None:
            parts = [float(values[name]) for name in simplex[0]]
            return simplex_weights(parts)[simplex[1]]
        other_name = complement_of(node["search"])
        if other_name is None:
            return values[parse_unknown(node["search"], where, key)[0]]
        if other_name not in values:
            raise ConfigError(
                f"{where}: {key}.search: speaks of {other_name!r}, which is not searched"
                f"{sentence_end(other_name, values)}"
            )
        if isinstance(values[other_name], (bool, str)):
            raise ConfigError(f"{where}: {key}.search: {other_name!r} is no number to subtract.")
        return round(1.0 - float(values[other_name]), 12)
    if isinstance(node, list):
        return [_fill(value, values, where, f"{key}.{n}") for n, value in enumerate(node)]
    return node


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
