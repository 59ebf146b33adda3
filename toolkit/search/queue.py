"""What is to be tried in a study: the models, the sweep, and what the sampler has to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from toolkit.errors import ConfigError
from toolkit.search.config import SearchSection
from toolkit.search.objective import Objective
from toolkit.search.sampler import (
    MERGE,
    StudySampler,
    Tried,
    fixed_parameters,
    grid_points,
    sampler_state,
    suggested,
    tried_values,
)
from toolkit.search.space import (
    GENERAL,
    ONE_SPECIALIST,
    SPECIALIST,
    UNIFORM_MEAN,
    Candidate,
    MergeSpace,
    alone,
    endpoint,
    sweep_point,
)
from toolkit.search.study import attributes_of
from toolkit.search.unknowns import Value


@dataclass
class SearchPlan:
    """What is to be tried in a study.

    Args:
        spaces: files of `merges/`.
        section: of the recipe.
        objective: of the validation sets.
        seed: of the recipe.
        specialists: what the specialists are called; each of several is a candidate too.
        start: name of the model that training started from, where it is not the general one.
        learned: merge whose weights were learned, where there is one.
    """

    spaces: list[MergeSpace]
    section: SearchSection
    objective: Objective
    seed: int
    specialists: tuple[str, ...] = ONE_SPECIALIST
    start: str | None = None
    learned: Candidate | None = None
    fixed: dict[str, Candidate] = field(init=False)

    def __post_init__(self) -> None:
        top = SPECIALIST if len(self.specialists) == 1 else UNIFORM_MEAN
        self.fixed = {name: endpoint(name, self.specialists) for name in (GENERAL, top)}
        # Beside a base the specialist is no end of the sweep; all that training changed is.
        ends = {1.0} if self.start is not None else set()
        # From the safest upwards: each is what the next, and all others, are compared with.
        for alpha in sorted({*self.section.sweep, *ends}, key=abs):
            swept_mean = self.plain_mean(alpha)
            if swept_mean.key not in {known.key for known in self.fixed.values()}:
                self.fixed[swept_mean.name] = swept_mean
        if top == UNIFORM_MEAN:
            self.fixed |= {name: alone(name) for name in self.specialists}
        if self.learned is not None:
            self.fixed[self.learned.name] = self.learned

    @property
    def by_name(self) -> dict[str, MergeSpace]:
        return {space.name: space for space in self.spaces}

    def plain_mean(self, alpha: float) -> Candidate:
        """The point of the sweep at an α."""
        return sweep_point(alpha, self.section.rounding, self.specialists, self.start)

    def sampler(self) -> StudySampler:
        """Proposes what the sweep does not try: its means are refined by the choice itself."""
        swept_spaces = {space.name for space in self.spaces if self._is_sweep(space)}
        # A sampler needs one file at least, even if the sweep says the same.
        left_out = swept_spaces if len(swept_spaces) < len(self.spaces) else set()
        return StudySampler(self.spaces, self.section, self.seed, self.learn, left_out)

    def _is_sweep(self, space: MergeSpace) -> bool:
        """Whether a file says the same as points of the sweep."""
        searched_forms = [self._as_searched(candidate) for candidate in self.fixed.values()]
        return any(parameters[MERGE] == space.name for parameters in searched_forms if parameters)

    def queue(self) -> list[dict[str, Any]]:
        """The whole study: the two models, the sweep, and what the sampler has to find.

        Raises:
            ConfigError: the grids hold more than `search.num_trials`.
        """
        entries: list[dict[str, Any]] = []
        keys = {candidate.key for candidate in self.fixed.values()}
        for name, candidate in self.fixed.items():
            entries.append(
                {"attributes": {"fixed": name}, "parameters": self._as_searched(candidate)}
            )
        if self.section.sampler != "grid":
            num_left = self.section.num_trials - len(entries) if self.spaces else 0
            # The rest are empty places: values are chosen when a worker takes one, from what is
            # known by then.
            return entries + [{"attributes": {}, "parameters": None}] * max(num_left, 0)
        for space in self.spaces:
            for values in grid_points(space, self.section.grid_points):
                candidate = space.candidate(values)
                if candidate.key not in keys:
                    keys.add(candidate.key)
                    fixed_values = fixed_parameters(self.by_name, space.name, values)
                    entries.append({"attributes": {}, "parameters": fixed_values})
        if len(entries) > self.section.num_trials:
            raise ConfigError(
                f"search.num_trials: the grids of {', '.join(self.by_name)} and the sweep make "
                f"{len(entries)} candidates, more than {self.section.num_trials}; allow so many, "
                "lower search.grid_points, or choose another sampler."
            )
        return entries

    def _as_searched(self, candidate: Candidate) -> dict[str, Any] | None:
        """A point of the sweep as one of a file that can say the same, for its sampler to know."""
        alpha = candidate.parameters.get("alpha")
        for space in self.spaces:
            if alpha is not None and list(space.unknowns) == ["alpha"]:
                try:
                    is_inside = 0.0 <= space.unknowns["alpha"].share(alpha) <= 1.0
                    same = is_inside and space.candidate({"alpha": alpha}).key == candidate.key
                except (ValueError, ConfigError):  # no number of its grid
                    continue
                if same:
                    return fixed_parameters(self.by_name, space.name, {"alpha": alpha})
        return None

    def candidate(self, trial: optuna.Trial | FrozenTrial) -> Candidate | None:
        """The candidate behind a place in the queue; None where it was not chosen yet."""
        if name := trial.user_attrs.get("fixed"):
            return self.fixed[name]
        # A frozen trial only tells what was chosen; one in hand is asked, which makes the sampler
        # choose.
        if isinstance(trial, FrozenTrial):
            known = tried_values(trial, self.by_name)
            return None if known is None else self._proposed(*known)
        return self._proposed(*suggested(trial, self.by_name))

    def _proposed(self, space_name: str, values: Mapping[str, Value]) -> Candidate:
        """A file's candidate, whose name no other merge has: everyone finds results by name."""
        space = self.by_name[space_name]
        candidate = space.candidate(values)
        namesake = self.fixed.get(candidate.name)
        if namesake is None or namesake.key == candidate.key:
            return candidate
        return replace(candidate, name=f"{candidate.name} of {Path(space.where).name}")

    def _tried(self, trial: FrozenTrial) -> tuple[str, dict[str, Value]] | None:
        """File and values of a candidate; a point of the sweep is one of a file that says the same
        (Optuna notes the values of those alone that it proposed)."""
        name = trial.user_attrs.get("fixed")
        if name is None:
            return tried_values(trial, self.by_name)
        searched_form = self._as_searched(self.fixed[name])
        if searched_form is None:
            return None
        space = self.by_name[searched_form[MERGE]]
        return space.name, {"alpha": float(self.fixed[name].parameters["alpha"])}

    def learn(self, trials: Sequence[FrozenTrial]) -> dict[str, list[Tried]]:
        """What samplers know of a study: by file, in order."""
        tried: dict[str, list[Tried]] = {space.name: [] for space in self.spaces}
        for trial in trials:
            known_values = self._tried(trial)
            if known_values is None:
                continue
            figures = None  # of one that failed too: it is not to be proposed again
            if trial.state == TrialState.COMPLETE:
                domain, general = trial.values
                figures = (domain, general, float(attributes_of(trial)["beyond"]))
            tried[known_values[0]].append(Tried(known_values[1], figures, sampler_state(trial)))
        return tried
