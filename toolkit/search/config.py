"""What a recipe says about the search. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.errors import ConfigError, Fault
from toolkit.load_yaml import load_yaml
from toolkit.merge.config import Rounding
from toolkit.section import Count, PositiveInt, Section, at_most
from toolkit.shipped import folders_of

SamplerName = Literal["quadratic", "grid", "tpe", "cmaes", "gp", "nsga2", "nsga3"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]

WITHOUT_EFFECT = ("storage", "study_name", "workers", "stale_seconds")
"""Keys that say where and by whom a search is done, not what it finds."""


MERGES_BESIDE_A_BASE = ("residual", "residual-layers")
"""Files of `merges/` that are searched by default where training starts at another model than the
general one."""

MERGES_OF_SEVERAL = ("specialists", "specialists-ties")
"""Files of `merges/` that are searched where a recipe has several specialists and names none."""


class RaceSection(Section):
    """Candidates are scored in parts; those that cannot win any more are dropped early."""

    enabled: bool = True
    """Without it every candidate is scored on every document."""

    error: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """Chance, over all looks, to drop a candidate that full scoring would show to be better than
    the best one, corrected for the number of candidates."""

    looks: tuple[Share, ...] = (0.1, 0.22, 0.36, 0.6)
    """Fractions of the domain documents after which a candidate may be dropped, rising; those that
    come to fewer than 5 documents are passed over. One set after the other is asked, and whoever is
    out for one is not scored on the others."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks: must rise (got {list(self.looks)})")
        return self


class LearnedSection(Section):
    """A merge whose weights are learned by gradient from the search's documents: one for every
    layer and kind of module. It is chosen like any other, or not."""

    method: Literal["task_arithmetic", "ties"] = "task_arithmetic"
    """`general + w·(specialist − general)`, in full or trimmed."""

    density: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """For `ties`: fraction of each tensor's changes that is kept."""

    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Where all weights begin. A gain on the domain is weighed against a loss on general sets as
    the plain means weigh it there."""

    steps: Annotated[int, Field(ge=2), at_most("COUNT")] = 16
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.04
    tokens_per_step: Annotated[PositiveInt, at_most("TOKENS")] = 1024
    """Of each set that counts."""


class SearchSection(Section):
    """Which merges are tried, and how."""

    former_keys: ClassVar = {
        "candidates": "num_trials",
        "confirm_candidates": "confirm_trials",
        "study": "study_name",
    }

    merges: tuple[str, ...] = ("linear", "slerp", "ties")
    """Files of `merges/`, by name; `general` and `specialist` there stand for the two models."""

    num_trials: Annotated[int, Field(ge=2), at_most("CANDIDATES")] = 24
    """How many merges are tried in all, the two models and the sweep included. The grid sampler
    tries every point of its grids and takes this as a limit."""

    sampler: SamplerName = "quadratic"
    """How candidates are chosen. `quadratic` fits a parabola over few evaluations of each file;
    `grid` tries all points; the others are Optuna's, each file searched by itself."""

    grid_points: Annotated[int, Field(ge=2), at_most("CANDIDATES")] = 4
    """Points along each range under `grid`."""

    sweep: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2)
    """Fractions of the specialist in the plain weighted mean that are always tried: the
    baseline."""

    refine: Annotated[int, Field(ge=0, le=6)] = 3
    """How often the sweep is halved between the last plain mean that is shown to stay within the
    tolerance and the first that is not."""

    rounding: Rounding = "nearest"
    """How merges become 16-bit weights, in the search and on disk. `stochastic` stores on average
    what is asked, where `nearest` swallows changes under half a step; a file of `merges/` that says
    its own `rounding` keeps it."""

    race: RaceSection = RaceSection()

    learned: LearnedSection | None = None
    """A candidate whose weights are learned by gradient, beside those of `merges`. Needs the model
    four times in float32 in memory."""

    weights: dict[str, Annotated[float, Field(gt=0.0)]] = Field(default_factory=dict)
    """Weight of a domain set, by its name, in the domain figure that is to be lowered; 1 for those
    that are not named. With several specialists each counts alike unless said otherwise: 1, shared
    by its sets."""

    confirm_fraction: Annotated[float, Field(ge=0.0, le=0.8)] = 0.34
    """Fraction of the validation documents that the search does not see, chosen by hash; what
    promises more than the plain sweep is confirmed on them. 0 confirms on the search's own
    documents, and the bounds are then widened for all candidates tried. The sweep itself, whose
    order is fixed beforehand, is tested on all validation documents."""

    confirm_trials: Count = 3
    """How many candidates that promise more than the plain sweep are confirmed."""

    storage: str | None = None
    """Where workers meet: an Optuna storage such as `postgresql://user@host/database`. By default a
    journal file in the stage's own folder."""

    study_name: str | None = None
    """Name of the study in the storage; by default the recipe's."""

    workers: Annotated[PositiveInt, at_most("WORKERS")] | None = None
    """Processes that `make merge` starts; by default one a GPU, and one without."""

    stale_seconds: Annotated[float, Field(gt=0.0)] = 300.0
    """A worker on another machine that gave no sign of life for so long has lost its candidate."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        # What further specialists or a base add is only known with the recipe: `find_faults`.
        if fault := self._fault_of_room(0, beside_a_base=False):
            raise ValueError(f"num_trials: {fault} (got {self.num_trials})")
        return self

    def _fault_of_room(self, num_specialists: int, *, beside_a_base: bool) -> str:
        """That there are fewer trials than what is always tried; nothing where there is room.

        Args:
            num_specialists: where a recipe has several, each of which is tried by itself; else 0.
            beside_a_base: whether training starts from another model than the general one: then
                the end of the sweep is not the specialist.
        """
        num_points = len({*self.sweep, *([1.0] if beside_a_base else [])})
        num_fixed = 2 + num_points + num_specialists + (self.learned is not None)
        # The grid sampler's number is a limit that its queue is held against later.
        if self.sampler == "grid" or self.num_trials >= num_fixed:
            return ""
        fault = f"must be at least {num_fixed}: the two models and the sweep of {num_points}"
        fault += f", and each of {num_specialists} specialists" if num_specialists else ""
        return fault + (", and `learned`" if self.learned is not None else "")

    def identity(self) -> dict[str, object]:
        """What the merges that are found depend on."""
        # Stages from before there was such a choice stay up to date.
        unsaid = {"rounding"} if self.rounding == "nearest" else set()
        unsaid |= {"learned"} if self.learned is None else set()
        return self.model_dump(mode="json", exclude={*WITHOUT_EFFECT, *unsaid})

    def find_faults(
        self,
        models: Collection[str],
        specialists: Sequence[str] = (),
        *,
        beside_a_base: bool = False,
    ) -> Iterator[Fault]:
        """What is wrong with `merges` that cannot be searched, at the recipe's key, and with
        further models of the recipe whose name merges have for another.

        Args:
            models: names of the recipe's further models.
            specialists: names of its specialists, where it has several.
            beside_a_base: whether training starts from another model than the general one.
        """
        if fault := self._fault_of_room(len(specialists), beside_a_base=beside_a_base):
            yield Fault("search.num_trials", f"{fault} (got {self.num_trials})")
        # The files are read by what searches them, which `--help` has no need of.
        from toolkit.search.space import (
            RESERVED,
            SPECIALIST,
            find_space,
            read_space,
        )

        for name in models:
            if name in RESERVED:
                yield Fault(
                    f"models.{name}", "is the name of a model that every recipe has", "give another"
                )
        for name in dict.fromkeys(self.merges):
            try:
                path = find_space(name, folders_of("merges"))
            except ConfigError as error:
                yield from error.faults
                continue
            try:
                read_space(
                    name,
                    load_yaml(path),
                    str(path),
                    models,
                    specialists=tuple(specialists) or (SPECIALIST,),
                )
            except ConfigError as error:
                yield Fault("search.merges", str(error))
