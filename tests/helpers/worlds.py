"""Simulated worlds: losses come from curves along α and documents that scatter around them, and the
real search, race and decision are run on them.

The curves are the finance run's plain means, scored afterwards on 21 other companies; scatter of
documents as in dev/LOG.md. `benchmarks/choice_studies.py` prints a table of many studies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from toolkit.evaluate.config import EvaluationRole
from toolkit.evaluate.sets import EvaluationSet
from toolkit.merge.config import MergeConfig
from toolkit.progress import console
from toolkit.search.config import SearchSection
from toolkit.search.objective import Objective
from toolkit.search.queue import SearchPlan
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import GENERAL, SPECIALIST, Candidate, MergeSpace, load_spaces
from toolkit.select.config import SelectSection
from toolkit.select.holdout import divide
from toolkit.select.test_figures import MERGE, ScoredTestSets, final_figures
from toolkit.statistics.interval import Interval
from toolkit.statistics.seeds import named_seed
from toolkit.train.config import TrainSection

Floats = NDArray[np.float64]
ALPHAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2)
DOMAIN = (0.0, -0.050, -0.093, -0.113, -0.126, -0.131, -0.127, -0.115)
RETENTION = (0.0, 0.012, 0.047, 0.087, 0.137, 0.215, 0.291, 0.380)
NEWS = (0.0, -0.020, -0.030, -0.033, -0.034, -0.035, -0.035, -0.033)
FLAT = (0.0,) * len(ALPHAS)

_SHARED = 0.97
"""Correlation of a document's movement with the pattern that all merges have in common."""


@dataclass(frozen=True)
class WorldSet:
    """One set of a world.

    Attributes:
        name, role, unit: as of an evaluation set.
        curve: true change of the figure along `ALPHAS`.
        scatter: standard deviation of a document's change at α = 1.
        power: it goes with α to this power.
        noise: standard deviation of what a merge by another method has of its own on each document.
        tokens: of a document.
        tolerance: of a general set.
        skewed: whether few documents move far, as of an exponential distribution.
        churn: of a set of questions, the share that a merge gets newly wrong without net loss.
    """

    name: str
    role: EvaluationRole
    unit: str
    curve: tuple[float, ...]
    scatter: float
    power: float
    noise: float
    tokens: int
    tolerance: float | None = None
    skewed: bool = False
    churn: float | None = None

    def change(self, alpha: float) -> float:
        """True change of the figure at this share of the specialist."""
        return float(_interpolated(self.curve)(alpha))


@cache
def _interpolated(curve: tuple[float, ...]) -> PchipInterpolator:
    return PchipInterpolator(ALPHAS, curve)


FILINGS = WorldSet("filings", "domain", "bits per byte", DOMAIN, 0.069, 0.57, 0.004, 256)
NEWS_SET = WorldSet("news", "general", "bits per byte", NEWS, 0.027, 0.5, 0.002, 256)
ANSWERS = WorldSet(
    "retention", "general", "nats per token", RETENTION, 0.13, 1.25, 0.010, 50, tolerance=0.1
)
DIVERGENCE = replace(ANSWERS, name="retention KL", role="watch", tokens=0)
QUESTIONS = WorldSet(
    "questions", "general", "error", (0.0, *(0.02,) * 7), 0.0, 0.0, 0.005, 60, 0.01, churn=0.01
)


@dataclass(frozen=True)
class World:
    """What is true in a simulated study.

    Attributes:
        name: for people.
        sets: with how many validation documents each has.
        better: share of domain gain that `ties` has above the plain mean of the same general loss.
    """

    name: str
    sets: tuple[tuple[WorldSet, int], ...]
    better: float = 0.0

    def gain(self, point: Point) -> float:
        """True domain gain of a merge."""
        more = 1.0 + self.better * (point.method == "ties")
        return -more * float(
            np.mean([s.change(point.alpha) for s, _ in self.sets if s.role == "domain"])
        )

    def is_within(self, point: Point) -> bool:
        """Whether a merge truly stays within the tolerance of every general set."""
        return all(
            s.change(point.alpha) <= (0.01 if s.tolerance is None else s.tolerance)
            for s, _ in self.sets
            if s.role == "general"
        )


@dataclass(frozen=True)
class Point:
    """A merge in a world: its share of the specialist, and the seed of what is its own."""

    alpha: float
    method: str
    key: str


def _finance(documents: int, **changes: Any) -> tuple[tuple[WorldSet, int], ...]:
    own = replace(ANSWERS, **changes)
    return tuple((item, documents) for item in (FILINGS, NEWS_SET, own))


_THREE = tuple(
    (replace(ANSWERS, name=name, tokens=100), 40) for name in ("retention", "chat", "code")
)
_TWICE = (0.0, *(0.2,) * (len(ALPHAS) - 1))
_JUST = (0.0, *(0.1001,) * (len(ALPHAS) - 1))
"""Truly lost by whatever is no less than 0.2 of the specialist, where 0.1 is tolerated."""

_AT_EDGE: dict[str, Any] = {"curve": _JUST, "scatter": 0.06, "power": 0.3}
_KEEPS: dict[str, Any] = {"curve": FLAT, "scatter": 0.06, "power": 0.3}
WORLDS = {
    world.name: world
    for world in (
        World("finance", _finance(40)),
        World(
            "finance, own sizes",
            ((FILINGS, 36), (NEWS_SET, 20), (ANSWERS, 32), (DIVERGENCE, 32)),
        ),
        World("finance, README's scatter", _finance(40, scatter=0.2, power=1.2)),
        World("14 documents", _finance(14)),
        World("8 documents", _finance(8)),
        World("three general sets", ((FILINGS, 40), *_THREE)),
        World("skewed", _finance(40, skewed=True)),
        World("three skewed", ((FILINGS, 40), *((replace(s, skewed=True), n) for s, n in _THREE))),
        World("16 documents", _finance(16)),
        World("between two grid points", _finance(40, tolerance=0.065)),
        *(World(f"tolerance {t:g}", _finance(40, tolerance=t)) for t in (0.02, 0.04, 0.15, 0.25)),
        World("no loss", _finance(40, curve=FLAT)),
        World("no gain", ((replace(FILINGS, curve=FLAT), 40), (NEWS_SET, 40), (ANSWERS, 40))),
        World("ties 8 % better", _finance(40), better=0.08),
        World("twice the tolerance", _finance(40, curve=_TWICE)),
        World(
            "three at twice the tolerance",
            ((FILINGS, 40), *((replace(s, curve=_TWICE), n) for s, n in _THREE)),
        ),
        World("just beyond", _finance(40, **_AT_EDGE)),
        World("just beyond, skewed", _finance(40, skewed=True, **_AT_EDGE)),
        World("just beyond, 14 documents", _finance(14, **_AT_EDGE)),
        World(
            "one of three just beyond",
            (
                (FILINGS, 40),
                (replace(_THREE[0][0], **_AT_EDGE), 40),
                *((replace(s, **_KEEPS), n) for s, n in _THREE[1:]),
            ),
        ),
        *(World(f"{n} questions", (*_finance(40), (QUESTIONS, n))) for n in (40, 100, 200)),
    )
}


class WorldSets:
    """The evaluation sets of one study of a world.

    Args:
        world: what is true.
        seed: of this study's documents.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        self._patterns: dict[tuple[str, str], Any] = {}

    def sets(self, split: str, factor: int = 1) -> list[EvaluationSet]:
        return [self._set(item, split, factor * count) for item, count in self.world.sets]

    def _set(self, item: WorldSet, split: str, count: int) -> EvaluationSet:
        generator = np.random.default_rng(named_seed(self.seed, split, item.name))
        questions = item.churn is not None
        sizes = np.ones(count) if questions else np.exp(0.3 * generator.standard_normal(count))
        level = 0.4 * generator.random(count) + 0.7
        own = generator.standard_exponential(count) - 1.0
        if not item.skewed:
            own = generator.standard_normal(count)
        waves = generator.standard_normal((2, count))
        draws = generator.random(count)
        losses: dict[Point, Floats] = {}

        def all_losses(point: Point) -> Floats:
            if point in losses:
                return losses[point]
            change, alpha = item.change(point.alpha), point.alpha
            if item.role == "domain":
                change = -self.world.gain(point)
            noise = np.zeros(count)
            if point.method != "linear":
                seed = named_seed(self.seed, split, item.name, point.key)
                noise = np.random.default_rng(seed).standard_normal(count)
            if questions:
                # Right before: draws below 0.6. Of those newly wrong and newly right, the net is
                # the change; another method flips a few of its own.
                wrong = (draws > 0.6).astype(np.float64)
                if alpha > 0.0:
                    churn = float(item.churn or 0.0)
                    wrong[draws < change + churn] = 1.0
                    wrong[draws > 1.0 - churn] = 0.0
                    flip = np.abs(noise) > 2.8
                    wrong[flip] = 1.0 - wrong[flip]
                found = wrong
            else:
                wave = waves[0] * np.cos(2.0 * alpha) + waves[1] * np.sin(2.0 * alpha)
                moved = _SHARED * own + np.sqrt(1.0 - _SHARED**2) * wave
                around = item.scatter * abs(alpha) ** item.power * moved if alpha else 0.0
                found = sizes * (level + change + around + item.noise * noise)
            losses[point] = found
            return found

        def score(model: Any, rows: Sequence[int]) -> list[float]:
            return list(all_losses(model)[list(rows)])

        ids = [f"{split}/{item.name}/{row}" for row in range(count)]
        return EvaluationSet(
            item.name,
            item.role,
            item.unit,
            ids,
            ids,
            sizes.tolist(),
            [item.tokens] * count,
            f"{item.name}/{split}/{self.seed}",
            score,
            tolerance=item.tolerance,
        )


def point_of(config: MergeConfig) -> Point:
    """Every method is the plain mean by another name."""
    own = next(item for item in config.models or () if item.model == SPECIALIST)
    values: dict[str, Any] = {**(config.parameters or {}), **(own.parameters or {})}
    if config.merge_method == "slerp":
        alpha = float(values["t"])
    elif config.merge_method == "ties":
        alpha = float(values["weight"]) * float(values["density"]) ** 0.12
    else:
        alpha = float(values["weight"])
    return Point(alpha, config.merge_method, Candidate("", config).key)


class WorldBench:
    """Where a worker merges and scores; `model` is a point of the world."""

    def __init__(self) -> None:
        self.merge_seconds = 0.0
        self.tokens = 0
        self.model: Point | None = None

    def apply(self, config: MergeConfig) -> None:
        self.model = point_of(config)

    def score(
        self, _candidate: Any, items: EvaluationSet, rows: Sequence[int], _together: Any = ()
    ) -> list[float]:
        self.tokens += sum(items.costs[row] for row in rows)
        return items.score(self.model, rows)

    def distance(self) -> float:
        assert self.model is not None
        return abs(self.model.alpha)


@dataclass(frozen=True)
class StudyFigures:
    """What one simulated study came to.

    Attributes:
        chosen: name of the candidate.
        alpha: its share of the specialist.
        gain: its true domain gain, 0 of the general model.
        best_plain: the largest true gain of a sweep point that is truly within the tolerance.
        is_merge: whether anything but the general model was chosen.
        is_within: whether it truly stays within every tolerance.
        fit_tried: whether a merge with a true gain that is within was among the candidates.
        beats: whether a method is said to beat the plain sweep.
        search_share: tokens of the search, of scoring every candidate on all of its documents.
        token_share: all tokens scored up to the choice, of every candidate on all validation
            documents.
        covered: whether the test interval of the domain change holds the truth.
        kept_covered: the same of the share of the gain that is kept; None where none is given.
        recovered_covered: the same of the share of the loss on retention that is recovered.
    """

    chosen: str
    alpha: float
    gain: float
    best_plain: float
    is_merge: bool
    is_within: bool
    fit_tried: bool
    beats: bool
    search_share: float
    token_share: float
    covered: bool
    kept_covered: bool | None = None
    recovered_covered: bool | None = None


@dataclass
class SimulatedSearch:
    """A `Search` of stages whose sets are made up; see `toolkit.pipeline.merge_search`."""

    validation: list[EvaluationSet]
    test: list[EvaluationSet]
    parts: Any
    plan: SearchPlan
    recipe: Any
    name: str = "simulated"
    identity: Mapping[str, Any] = field(default_factory=dict)

    def objective(self, sets: Sequence[EvaluationSet]) -> Objective:
        return _objective(self.recipe, sets, race=False)


def _objective(recipe: Any, sets: Sequence[EvaluationSet], *, race: bool) -> Objective:
    search, select = recipe.search, recipe.select
    return Objective(
        sets,
        weights=search.weights,
        tolerances=select.tolerances,
        tolerance=select.general_tolerance,
        confidence=select.confidence,
        race=search.race if race else search.race.model_copy(update={"enabled": False}),
        seed=recipe.seed,
        num_candidates=search.num_trials,
    )


@cache
def _spaces() -> list[MergeSpace]:
    folder = Path(__file__).parents[2] / "merges"
    return load_spaces(("linear", "slerp", "ties"), [folder])


def _storage_in_memory(*_: Any, **__: Any) -> Any:
    return optuna.storages.InMemoryStorage()


def _alive(*_: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Studies in memory; nothing written, nothing printed."""
    with (
        mock.patch("toolkit.search.study.open_storage", _storage_in_memory),
        mock.patch("toolkit.search.study.Study.alive", _alive),
        mock.patch("toolkit.search.run.write_json"),
        mock.patch.object(console, "quiet", True),
    ):
        yield


@dataclass(frozen=True)
class Study:
    """One study of a world, decided.

    Attributes:
        search: with its sets.
        outcomes: of the search.
        choice: candidate that the merge stage chose.
        search_tokens, tokens: scored by the search, and up to the choice.
    """

    search: Any
    outcomes: Sequence[Any]
    choice: Any
    search_tokens: int
    tokens: int


def decide_study(world: World, seed: int) -> Study:
    """One study of a world through the real search and decision."""
    from toolkit.pipeline.merge_choice import choose_candidate  # needs torch

    made = WorldSets(world, seed)
    validation, test = made.sets("validation"), made.sets("test")
    section = SearchSection()
    recipe = SimpleNamespace(
        search=section, select=SelectSection(), train=TrainSection(), seed=seed, specialists={}
    )
    parts = divide(validation, section.confirm_fraction, seed)
    plan = SearchPlan(_spaces(), section, _objective(recipe, parts.search, race=True), seed)
    search: Any = SimulatedSearch(validation, test, parts, plan, recipe)
    bench = WorldBench()
    with _quietly():
        outcomes = run_search(plan, Path("nowhere"), "simulated", {}, bench)
        searched = bench.tokens
        choice = choose_candidate(search, outcomes, Scorer(bench, Path("nowhere")))
    return Study(search, outcomes, choice, searched, bench.tokens)


def run_study(world: World, seed: int) -> StudyFigures:
    """One study, and what came of it."""
    study = decide_study(world, seed)
    search, outcomes, choice = study.search, study.outcomes, study.choice
    section, validation = search.recipe.search, search.validation
    whole = search.objective(validation)
    points = [point_of(outcome.candidate.config) for outcome in outcomes]
    fit = [p for p in points if p.alpha > 0.0 and world.is_within(p) and world.gain(p) > 0.0]
    plain = [Point(a, "linear", "") for a in (*section.sweep, 1.0)]
    chosen = point_of(choice.candidate.config)
    is_merge = choice.decision.choice.any_merge
    beaten = choice.beat_sweep
    return StudyFigures(
        choice.candidate.name,
        chosen.alpha,
        world.gain(chosen),
        max((world.gain(p) for p in plain if world.is_within(p)), default=0.0),
        is_merge,
        world.is_within(chosen),
        bool(fit),
        beaten.high is not None and beaten.high < 0.0,
        study.search_tokens / (len(outcomes) * search.plan.objective.all_tokens),
        study.tokens / (section.num_trials * whole.all_tokens),
        *(_covers(search, world, chosen) if is_merge else (True, None, None)),
    )


def _covers(search: Any, world: World, chosen: Point) -> tuple[bool, bool | None, bool | None]:
    """Whether test intervals of the change, the gain kept and the loss recovered hold the truth."""
    losses = {}
    for name, point in (
        (GENERAL, Point(0.0, "linear", "")),
        (SPECIALIST, Point(1.0, "linear", "")),
        (MERGE, chosen),
    ):
        losses[name] = {s.name: s.score(point, range(len(s))) for s in search.test}
    figures = final_figures(ScoredTestSets(search.test, {}, losses))
    change = figures.models.merge.domain_change
    whole = world.gain(Point(1.0, "linear", ""))
    kept = world.gain(chosen) / whole if whole else None
    lossy = next((s for s, _ in world.sets if s.name == "retention"), None)
    back = None
    if lossy is not None and lossy.change(1.0):
        back = 1.0 - lossy.change(chosen.alpha) / lossy.change(1.0)
    shown = figures.sets_recovered.get("retention")
    return (
        bool(change.low <= -world.gain(chosen) <= change.high),
        _holds(figures.gain_kept, kept),
        _holds(shown, back),
    )


def _holds(interval: Interval | None, truth: float | None) -> bool | None:
    if interval is None or truth is None:
        return None
    return interval.low <= truth <= interval.high
