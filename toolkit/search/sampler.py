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
    state: Mapping[str, object]

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
    state: Mapping[str, object]


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
    tries_per_unknown = [len(tried[space.name]) / (1 + len(space.unknowns)) for space in spaces]
    space = spaces[int(np.argmin(tries_per_unknown))]
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
    # An arm is a file with its choices made: a parabola has no direction for a choice.
    arms, arm_origins = [], []
    for space in spaces:
        option_values = {
            name: unknown.values
            for name, unknown in space.unknowns.items()
            if isinstance(unknown, Options) and not unknown.ordered
        }
        number_unknowns = {n: u for n, u in space.unknowns.items() if n not in option_values}
        for combination in itertools.product(*option_values.values()):
            chosen_options = dict(zip(option_values, combination, strict=True))
            own = [
                item
                for item in tried[space.name]
                if all(item.values.get(n) == v for n, v in chosen_options.items())
            ]
            points = [[u.share(item.values[n]) for n, u in number_unknowns.items()] for item in own]
            arms.append(
                Arm(
                    np.array(points, dtype=np.float64).reshape(len(own), len(number_unknowns)),
                    *_figures(own),
                )
            )
            arm_origins.append((space, chosen_options, number_unknowns))
    num_tried = sum(len(arm.points) for arm in arms)
    arm_number, arm_point = propose(arms, named_seed(seed, "quadratic", str(num_tried)))
    space, chosen_options, number_unknowns = arm_origins[arm_number]
    found = {
        name: u.at(float(share))
        for (name, u), share in zip(number_unknowns.items(), arm_point, strict=True)
    }
    return Proposal(space.name, {n: {**chosen_options, **found}[n] for n in space.unknowns}, {})


def _figures(own: Sequence[Tried]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Domain figures, and how far beyond the tolerance; NaN where they are not known."""
    figure_rows = [item.figures or (math.nan, math.nan, math.nan) for item in own]
    figure_table = np.array(figure_rows, dtype=np.float64).reshape(len(own), 3)
    return figure_table[:, 0], figure_table[:, 2]


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
    has_two_aims = name in {"nsga2", "nsga3"}
    parameter_box = {key: distribution(unknown) for key, unknown in space.unknowns.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # In memory and made anew for each proposal, from what the shared study knows of this file.
        study = optuna.create_study(
            directions=["minimize"] * (2 if has_two_aims else 1), sampler=_sampler(name, seed)
        )
        for item in own:
            if item.figures is None:
                continue
            values = list(item.figures[:2]) if has_two_aims else [item.score]
            if has_two_aims:  # beyond the tolerance both are worse, so that the front stays within
                values = [value + PENALTY * max(item.figures[2], 0.0) for value in values]
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.COMPLETE,
                    values=values,
                    params={k: _encode(u, item.values[k]) for k, u in space.unknowns.items()},
                    distributions=parameter_box,
                    # What CMA-ES knows of its distribution, or NSGA of generations, is kept with
                    # candidates.
                    system_attrs=dict(item.state),
                )
            )
        trial = study.ask(parameter_box)
    found_values = {key: _decode(u, trial.params[key]) for key, u in space.unknowns.items()}
    sampler_attributes = study.get_trials(deepcopy=False)[-1].system_attrs
    return Proposal(space.name, found_values, dict(sampler_attributes))


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    # Optuna's defaults (10 random candidates first, generations of 50) suit longer studies: here
    # some 15 candidates are to be chosen.
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
        # Optuna asks for the space before it asks for values, and which file's space it is depends
        # on the proposal: so that is made here.
        other_trials = [
            other for other in study.get_trials(deepcopy=False) if other.number != trial.number
        ]
        self._proposal = next_proposal(
            self._proposing, self._learn(other_trials), self._section, self._seed
        )
        return parameter_box(self._spaces, self._proposal.space)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, object]:
        proposal = self._proposal
        assert proposal is not None  # noqa: S101  (Optuna asks for the space first)
        study._storage.set_trial_user_attr(trial._trial_id, _STATE, dict(proposal.state))
        unknowns = self._spaces[proposal.space].unknowns
        study_values = {
            f"{proposal.space}.{name}": _encode(unknowns[name], value)
            for name, value in proposal.values.items()
        }
        return {MERGE: proposal.space, **study_values}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random value, for a candidate whose worker was killed amid its proposal."""
        seed = named_seed(self._seed, "independent", str(trial.number), param_name)
        # Drawn by the trial's number, so that any process would draw the same.
        study_in_memory = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return study_in_memory.ask({param_name: param_distribution}).params[param_name]


def parameter_box(spaces: Mapping[str, MergeSpace], name: str) -> dict[str, BaseDistribution]:
    """The study's parameters of a candidate of one file."""
    own_box = {f"{name}.{key}": distribution(u) for key, u in spaces[name].unknowns.items()}
    return {MERGE: CategoricalDistribution(tuple(spaces)), **own_box}


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
) -> dict[str, object]:
    """Values as the study's parameters, for a candidate that is not to be proposed."""
    own_unknowns = spaces[name].unknowns
    return {MERGE: name, **{f"{name}.{k}": _encode(own_unknowns[k], v) for k, v in values.items()}}


def tried_values(
    trial: FrozenTrial, spaces: Mapping[str, MergeSpace]
) -> tuple[str, dict[str, Value]] | None:
    """File and values of a study's candidate, None where it has none (yet)."""
    name = trial.params.get(MERGE)
    if name is None or any(f"{name}.{key}" not in trial.params for key in spaces[name].unknowns):
        return None
    unknowns = spaces[name].unknowns
    return name, {k: _decode(u, trial.params[f"{name}.{k}"]) for k, u in unknowns.items()}


def sampler_state(trial: FrozenTrial) -> dict[str, object]:
    return dict(trial.user_attrs.get(_STATE, {}))
