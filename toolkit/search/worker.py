"""A worker: takes candidates from the study's queue, merges them in memory and races them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from toolkit.errors import ConfigError, EvaluationError, MergeError
from toolkit.evaluate.sets import EvaluationSet
from toolkit.merge.config import MergeConfig
from toolkit.progress import Advance
from toolkit.search.objective import Losses, Objective, guide_of
from toolkit.search.queue import SearchPlan
from toolkit.search.race import Rivals, rivals_among, run_race
from toolkit.search.space import GENERAL, Candidate, alphas_by_name, find_sweep_end
from toolkit.search.storage import spoken
from toolkit.search.study import (
    OUTCOME,
    DamagedScoresError,
    Result,
    Study,
    attributes_of,
    pack,
    unpack,
)

_POLL_SECONDS = 0.5

OutcomeStatus = Literal["complete", "dropped", "failed"]


class Merging(Protocol):
    """What a worker needs of a bench; see `Bench`."""

    merge_seconds: float

    def apply(self, config: MergeConfig) -> None: ...

    def score(
        self,
        candidate: Candidate,
        items: EvaluationSet,
        rows: Sequence[int],
        together: Sequence[EvaluationSet] = (),
    ) -> list[float]: ...

    def distance(self) -> float: ...


def score_missing(
    bench: Merging,
    candidate: Candidate,
    objective: Objective,
    losses: dict[str, NDArray[np.float64]],
    counts: Mapping[str, int] | None = None,
) -> None:
    """Add what is not known yet of a candidate.

    Args:
        bench: with the candidate's merge on it.
        candidate: what was merged.
        objective: of the sets.
        losses: so far; gains what is scored.
        counts: items that are to be known, by set; by default all of all sets.
    """
    all_sets = [raced.items for raced in objective.sets.values()]
    for name, raced in objective.sets.items():
        losses_so_far = losses.get(name, np.zeros(0))
        wanted_count = len(raced.order) if counts is None else counts.get(name, 0)
        if rows := raced.order[len(losses_so_far) : wanted_count].tolist():
            new_losses = bench.score(candidate, raced.items, rows, all_sets)
            losses[name] = np.concatenate([losses_so_far, np.asarray(new_losses, dtype=np.float64)])


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        candidate: what was merged.
        status: `complete`, `dropped` after part of the items, or `failed`.
        losses: by set, in the order of the race, as far as they were scored.
        distance: from the general model.
        tokens: that were scored for it.
        merge_seconds, score_seconds: what it took.
        order: its place in the study.
        error: what failed.
    """

    candidate: Candidate
    status: OutcomeStatus
    losses: Losses
    distance: float
    tokens: int
    merge_seconds: float
    score_seconds: float
    order: int
    error: str = ""


def read_outcome(plan: SearchPlan, trial: FrozenTrial) -> Outcome | None:
    """What became of a candidate that is done; None before."""
    candidate = plan.candidate(trial)
    if not trial.state.is_finished() or candidate is None:
        return None
    kept_attributes = attributes_of(trial)
    return Outcome(
        candidate,
        cast("OutcomeStatus", kept_attributes["status"]),
        read_losses(kept_attributes),
        float(kept_attributes.get("distance", 0.0)),
        int(kept_attributes.get("tokens", 0)),
        float(kept_attributes.get("merge_seconds", 0.0)),
        float(kept_attributes.get("score_seconds", 0.0)),
        trial.number,
        str(kept_attributes.get("error", "")),
    )


def read_losses(attributes: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """
    Raises:
        DamagedScoresError: they are not as they were written.
    """
    return {name: unpack(text) for name, text in attributes.get("losses", {}).items()}


def plain_points(
    outcomes: Sequence[Outcome], fixed: Mapping[str, Candidate]
) -> dict[float, Losses]:
    """Losses of the sweep's points that were scored in full, by α, the two models among them."""
    # By what is merged: a file's candidate may have a point's name and be another merge.
    alphas = {
        fixed[name].key: alpha
        for name, alpha in alphas_by_name(fixed.values()).items()
        if name in fixed
    }
    return {
        alphas[outcome.candidate.key]: outcome.losses
        for outcome in outcomes
        if outcome.candidate.key in alphas and outcome.status == "complete"
    }


class Worker:
    """Works on a study until its queue is empty and nothing is under way any more.

    Args:
        plan: what is to be tried.
        study: the queue.
        bench: where candidates are merged.
        advance: is told of tokens that were scored, or need not be.
    """

    def __init__(
        self, plan: SearchPlan, study: Study, bench: Merging, advance: Advance = lambda *_: None
    ) -> None:
        self._plan = plan
        self._study = study
        self._bench = bench
        self._advance = advance
        self._outcomes: dict[int, Outcome] = {}
        self._known_points: tuple[float, ...] = ()
        self._rivals_known = Rivals(None, None, None, None)
        self._general_key = plan.fixed[GENERAL].key
        self._sweep_end_key = find_sweep_end(plan.fixed).key
        self._shown_keys = {one.key for one in plan.fixed.values() if one != plan.learned}

    def work(self, *, stay: bool = True) -> None:
        """Score candidates.

        Args:
            stay: also wait for those that other workers have, which may come back to the queue.
        """
        while True:
            self._study.requeue_lost()
            trial = self._study.claim()
            if trial is not None:
                with self._study.alive(trial):
                    self._score(trial)
            elif not stay or self._study.is_finished():
                return
            else:
                time.sleep(_POLL_SECONDS)

    def outcomes(self) -> dict[int, Outcome]:
        """Those that are done, by their places."""
        # What is done never changes: each outcome is unpacked once. Beyond the queue's size are
        # candidates that Optuna made up.
        size = self._study.size
        for trial in self._study.trials()[:size]:
            if trial.number not in self._outcomes and trial.state.is_finished():
                outcome = self._told_where(trial, partial(read_outcome, self._plan, trial))
                if outcome is not None:
                    self._outcomes[trial.number] = outcome
        return self._outcomes

    def _score(self, trial: optuna.Trial) -> None:
        objective = self._plan.objective
        candidate = self._study.patiently(lambda: self._plan.candidate(trial))
        assert candidate is not None  # noqa: S101  (a trial in hand has values)
        outcomes = self.outcomes()
        # The same merge by another file or proposal is not scored twice; a failed one has no
        # distance.
        twin = next(
            (o for o in outcomes.values() if o.candidate.key == candidate.key and o.distance), None
        )
        merged_before, start_time = self._bench.merge_seconds, time.perf_counter()
        # What a worker that was killed amid the race had scored of it.
        attributes = self._study.patiently(lambda: trial.user_attrs)
        known_losses = self._told_where(trial, partial(read_losses, attributes))
        tokens = 0
        try:
            if twin is not None:
                status, losses, distance = twin.status, dict(twin.losses), twin.distance
            else:
                self._bench.apply(candidate.config)
                status, losses, tokens = self._race(trial, known_losses, candidate)
                distance = self._bench.distance()
        except (EvaluationError, MergeError, ConfigError) as error:
            if self._is_endpoint(candidate):
                raise  # without them there is nothing to compare with
            self._study.note(trial, **{OUTCOME: {"status": "failed", "error": str(error)}})
            self._study.finish(trial, None)
            self._advance(objective.all_tokens, f"{candidate.name}: failed")
            return
        is_general = candidate.key == self._general_key
        general = losses if is_general else self._wait_for_general()
        if general is None:  # its worker ended: it comes first in the queue, and then this one
            self._keep_losses(trial, losses)
            self._study.put_back(trial)
            return
        guide = guide_of(self._find(self._sweep_end_key), self._find(self._general_key))
        figures = objective.estimates(losses, [general, *self._whole()], guide)
        merge_seconds = self._bench.merge_seconds - merged_before
        outcome = {
            "status": status,
            "distance": distance,
            "tokens": tokens,
            "merge_seconds": merge_seconds,
            "score_seconds": time.perf_counter() - start_time - merge_seconds,
            "losses": {name: pack(values) for name, values in losses.items()},
            "beyond": objective.beyond_tolerance(losses, general, guide),
        }
        self._study.note(trial, **{OUTCOME: outcome})
        values = [objective.domain(figures), objective.general(figures)]
        if math.isnan(values[1]):  # dropped for the domain alone; a storage takes no NaN
            values[1] = objective.general(objective.estimates(general, [general]))
        self._study.finish(trial, values)
        self._advance(
            objective.all_tokens - objective.tokens(losses), f"{candidate.name}: {values[0]:.4f}"
        )

    def _race(
        self, trial: optuna.Trial, losses: dict[str, NDArray[np.float64]], candidate: Candidate
    ) -> tuple[OutcomeStatus, dict[str, NDArray[np.float64]], int]:
        objective = self._plan.objective
        tokens_before, tokens_told = objective.tokens(losses), 0

        def scored() -> int:
            return objective.tokens(losses) - tokens_before

        def tell() -> None:
            nonlocal tokens_told
            self._advance(scored() - tokens_told, candidate.name)
            tokens_told = scored()

        def keep() -> None:  # so that a killed worker's candidate need not begin anew
            tell()
            self._keep_losses(trial, losses)

        stayed_in = run_race(
            objective,
            losses,
            lambda counts: score_missing(self._bench, candidate, objective, losses, counts),
            self._rivals,
            may_drop=not self._is_endpoint(candidate),
            is_shown=candidate.key in self._shown_keys,
            after_look=keep,
        )
        tell()
        return "complete" if stayed_in else "dropped", losses, scored()

    def _rivals(self) -> Rivals:
        """Made anew when there are more points of the sweep."""
        points = plain_points(list(self.outcomes().values()), self._plan.fixed)
        # They are asked for at every question of every candidate; points come seldom.
        if self._known_points != tuple(points):
            self._known_points = tuple(points)
            self._rivals_known = rivals_among(points, self._plan.objective)
        return self._rivals_known

    def _whole(self) -> list[Losses]:
        return [o.losses for o in self.outcomes().values() if o.status == "complete"]

    def _find(self, key: str) -> Losses | None:
        for outcome in self.outcomes().values():
            if outcome.candidate.key == key:
                return outcome.losses
        return None

    def _is_endpoint(self, candidate: Candidate) -> bool:
        return candidate.key in (self._general_key, self._sweep_end_key)

    def _wait_for_general(self) -> Losses | None:
        """Losses of the general model, which every other candidate's figures are made with; None
        where its worker ended before it knew them."""
        while (general := self._find(self._general_key)) is None:
            self._study.requeue_lost()
            if self._study.trials()[0].state == TrialState.WAITING:  # the first of every queue
                return None
            time.sleep(_POLL_SECONDS)
        return general

    def _keep_losses(self, trial: optuna.Trial, losses: Losses) -> None:
        packed = {name: pack(values) for name, values in losses.items()}
        self._study.note(trial, losses=packed)

    def _told_where(self, trial: optuna.Trial | FrozenTrial, read: Callable[[], Result]) -> Result:
        """What is read of a candidate.

        Raises:
            DamagedScoresError: its scores are damaged; with the place and what to do.
        """
        try:
            return read()
        except DamagedScoresError as error:
            raise DamagedScoresError(
                f"{spoken(self._study.place)}: candidate {trial.number}: {error}. Move the study "
                "away, or give a new one a name (search.study_name), and run the same command: it "
                "is scored again."
            ) from error
