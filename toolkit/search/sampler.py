"""How candidates are chosen: Optuna's samplers and the quadratic surrogate behind one sampler.

A study holds several files of `merges/`, each with numbers of its own. Optuna's samplers search
one box, so each file is searched by itself: from the study's candidates of that file a study in
memory is made anew, whose sampler says what is next. Nothing but the storage holds state, so any
process can go on.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from toolkit.errors import ConfigError
from toolkit.limits import limit, raise_hint
from toolkit.search.config import SearchSection
from toolkit.search.space import MergeSpace
from toolkit.search.surrogate import PENALTY, Arm, propose
from toolkit.search.unknowns import Options, Range, Unknown, Value
from toolkit.statistics.seeds import named_seed

MERGE = "merge"
"""Name of the study's parameter that says which file a candidate is of."""

_STATE = "sampler"


@dataclass(frozen=True)
class Tried:
    """A candidate that a sampler learns from.

    Attributes:
        values: of the file's unknowns.
        figures: domain figure, general figure and how far the general loss is beyond the tolerance
            (below 0 within); None where they are not known (yet).
        state: what the sampler itself left with it.
    """

    values: Mapping[str, Value]
    figures: tuple[float, float, float] | None
    state: Mapping[str, Any]

    @property
    def score(self) -> float:
        if self.figures is None:
            return math.nan
        domain, _, beyond = self.figures
        return domain + PENALTY * max(beyond, 0.0)


@dataclass(frozen=True)
class Proposal:
    """What to try next, and what the sampler leaves with it."""

    space: str
    values: dict[str, Value]
    state: Mapping[str, Any]


def next_proposal(
    spaces: Sequence[MergeSpace],
    tried: Mapping[str, Sequence[Tried]],
    section: SearchSection,
    seed: int,
) -> Proposal:
    """The next candidate.

    Args:
        spaces: the files.
        tried: by file, in the order in which they were begun.
        section: which sampler.
        seed: of the recipe; each proposal derives its own from what was tried.
    """
    if section.sampler == "quadratic":
        return _quadratic(spaces, tried, seed)
    # The file that was tried least, for how much there is to be found in it.
    needs = [len(tried[space.name]) / (1 + len(space.unknowns)) for space in spaces]
    space = spaces[int(np.argmin(needs))]
    own = tried[space.name]
    if not space.unknowns:
        return Proposal(space.name, {}, {})
    return _by_optuna(space, own, section.sampler, named_seed(seed, space.name, str(len(own))))


def grid_points(space: MergeSpace, points: int) -> list[dict[str, Value]]:
    """Every combination of a file's values, `points` along each range."""
    axes = []
    for unknown in space.unknowns.values():
        if isinstance(unknown, Options):
            axes.append(list(unknown.values))
        else:
            shares = np.linspace(0.0, 1.0, points)
            axes.append(list(dict.fromkeys(unknown.at(float(share)) for share in shares)))
    if math.prod(map(len, axes)) > limit("CANDIDATES"):
        raise ConfigError(
            f"search.grid_points: the grid of {space.name} has {math.prod(map(len, axes)):,} "
            f"points; {raise_hint('CANDIDATES')}."
        )
    return [dict(zip(space.unknowns, values, strict=True)) for values in itertools.product(*axes)]


def _quadratic(
    spaces: Sequence[MergeSpace], tried: Mapping[str, Sequence[Tried]], seed: int
) -> Proposal:
    arms, keys = [], []
    for space in spaces:
        choices = {
            name: unknown.values
            for name, unknown in space.unknowns.items()
            if isinstance(unknown, Options) and not unknown.ordered
        }
        numbers = {n: u for n, u in space.unknowns.items() if n not in choices}
        for combination in itertools.product(*choices.values()):
            chosen = dict(zip(choices, combination, strict=True))
            own = [
                item
                for item in tried[space.name]
                if all(item.values.get(n) == v for n, v in chosen.items())
            ]
            points = [[u.share(item.values[n]) for n, u in numbers.items()] for item in own]
            arms.append(
                Arm(
                    np.array(points, dtype=np.float64).reshape(len(own), len(numbers)),
                    *_figures(own),
                )
            )
            keys.append((space, chosen, numbers))
    count = sum(len(arm.points) for arm in arms)
    number, point = propose(arms, named_seed(seed, "quadratic", str(count)))
    space, chosen, numbers = keys[number]
    found = {
        name: u.at(float(share)) for (name, u), share in zip(numbers.items(), point, strict=True)
    }
    return Proposal(space.name, {n: {**chosen, **found}[n] for n in space.unknowns}, {})


def _figures(own: Sequence[Tried]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Domain figures, and how far beyond the tolerance; NaN where they are not known."""
    rows = [item.figures or (math.nan, math.nan, math.nan) for item in own]
    table = np.array(rows, dtype=np.float64).reshape(len(own), 3)
    return table[:, 0], table[:, 2]


def distribution(unknown: Unknown) -> BaseDistribution:
    """What Optuna draws an unknown from; a grid's numbers by their place in it."""
    if isinstance(unknown, Range):
        if unknown.integer:
            return IntDistribution(int(unknown.low), int(unknown.high), log=unknown.log)
        return FloatDistribution(unknown.low, unknown.high, log=unknown.log)
    if unknown.ordered:
        return IntDistribution(0, len(unknown.values) - 1)
    return CategoricalDistribution(unknown.values)


def _encode(unknown: Unknown, value: Value) -> Any:
    if isinstance(unknown, Options) and unknown.ordered:
        return unknown.values.index(value)
    return value


def _decode(unknown: Unknown, value: Any) -> Value:
    if isinstance(unknown, Options):
        return unknown.values[value] if unknown.ordered else cast(Value, value)
    return unknown.at(unknown.share(value))


def _by_optuna(space: MergeSpace, own: Sequence[Tried], name: str, seed: int) -> Proposal:
    several = name in {"nsga2", "nsga3"}
    box = {key: distribution(unknown) for key, unknown in space.unknowns.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=["minimize"] * (2 if several else 1), sampler=_sampler(name, seed)
        )
        for item in own:
            if item.figures is None:
                continue
            values = list(item.figures[:2]) if several else [item.score]
            if several:  # beyond the tolerance both are worse, so that the front stays within
                values = [value + PENALTY * max(item.figures[2], 0.0) for value in values]
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.COMPLETE,
                    values=values,
                    params={k: _encode(u, item.values[k]) for k, u in space.unknowns.items()},
                    distributions=box,
                    system_attrs=dict(item.state),
                )
            )
        trial = study.ask(box)
    found = {key: _decode(u, trial.params[key]) for key, u in space.unknowns.items()}
    state = study.get_trials(deepcopy=False)[-1].system_attrs
    return Proposal(space.name, found, dict(state))


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    if name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=True)
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=1)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=5, deterministic_objective=True)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=8)
    if name == "nsga3":
        return samplers.NSGAIIISampler(seed=seed, population_size=8)
    raise ConfigError(f"search.sampler: unknown sampler {name!r}.")


class StudySampler(optuna.samplers.BaseSampler):  # type: ignore[misc]  # its types are not read
    """Gives a study's candidates the values that `next_proposal` finds.

    Args:
        spaces: the files.
        section: which sampler.
        seed: of the recipe.
        learn: what was tried, by file, from the study's candidates.
        left_out: files of which nothing is to be proposed.
    """

    def __init__(
        self,
        spaces: Sequence[MergeSpace],
        section: SearchSection,
        seed: int,
        learn: Any,
        left_out: Collection[str] = (),
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._proposing = [space for space in spaces if space.name not in left_out]
        self._section = section
        self._seed = seed
        self._learn = learn
        self._proposal: Proposal | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        others = [
            other for other in study.get_trials(deepcopy=False) if other.number != trial.number
        ]
        self._proposal = next_proposal(
            self._proposing, self._learn(others), self._section, self._seed
        )
        return parameter_box(self._spaces, self._proposal.space)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        proposal = self._proposal
        assert proposal is not None  # noqa: S101  (Optuna asks for the space first)
        study._storage.set_trial_user_attr(trial._trial_id, _STATE, dict(proposal.state))
        unknowns = self._spaces[proposal.space].unknowns
        found = {
            f"{proposal.space}.{name}": _encode(unknowns[name], value)
            for name, value in proposal.values.items()
        }
        return {MERGE: proposal.space, **found}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random value, for a candidate whose worker was killed amid its proposal."""
        seed = named_seed(self._seed, "independent", str(trial.number), param_name)
        study_in_memory = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return study_in_memory.ask({param_name: param_distribution}).params[param_name]


def parameter_box(spaces: Mapping[str, MergeSpace], name: str) -> dict[str, BaseDistribution]:
    """The study's parameters of a candidate of one file."""
    own = {f"{name}.{key}": distribution(u) for key, u in spaces[name].unknowns.items()}
    return {MERGE: CategoricalDistribution(tuple(spaces)), **own}


def suggested(
    trial: optuna.Trial, spaces: Mapping[str, MergeSpace]
) -> tuple[str, dict[str, Value]]:
    """File and values of a candidate, proposed now if they were not before."""
    name = str(trial.suggest_categorical(MERGE, tuple(spaces)))
    values = {}
    for key, unknown in spaces[name].unknowns.items():
        values[key] = _decode(unknown, trial._suggest(f"{name}.{key}", distribution(unknown)))
    return name, values


def fixed_parameters(
    spaces: Mapping[str, MergeSpace], name: str, values: Mapping[str, Value]
) -> dict[str, Any]:
    """Values as the study's parameters, for a candidate that is not to be proposed."""
    own = spaces[name].unknowns
    return {MERGE: name, **{f"{name}.{k}": _encode(own[k], v) for k, v in values.items()}}


def tried_values(
    trial: FrozenTrial, spaces: Mapping[str, MergeSpace]
) -> tuple[str, dict[str, Value]] | None:
    """File and values of a study's candidate, None where it has none (yet)."""
    name = trial.params.get(MERGE)
    if name is None or any(f"{name}.{key}" not in trial.params for key in spaces[name].unknowns):
        return None
    unknowns = spaces[name].unknowns
    return name, {k: _decode(u, trial.params[f"{name}.{k}"]) for k, u in unknowns.items()}


def sampler_state(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.user_attrs.get(_STATE, {}))
