"""A whole search: the study is queued, workers are started beside this one, all is scored."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ToolkitError
from toolkit.progress import Advance, progress, say
from toolkit.search.objective import Objective
from toolkit.search.queue import SearchPlan
from toolkit.search.storage import DamagedJournalError, Place
from toolkit.search.study import DamagedScoresError, Study, pack, unpack
from toolkit.search.worker import Merging, Outcome, Worker, score_missing
from toolkit.stage import free_name, load_json, write_json


def run_search(
    plan: SearchPlan,
    place: Place,
    name: str,
    identity: Mapping[str, Any],
    bench: Merging,
    *,
    helpers: Sequence[Sequence[str]] = (),
    helper_threads: int | None = None,
) -> list[Outcome]:
    """Score every candidate of a study that is not scored yet.

    Args:
        plan: what is to be tried.
        place: of the storage.
        name: of the study.
        identity: see `Study`.
        bench: where candidates are merged.
        helpers: commands of workers to start beside this one.
        helper_threads: for each of those, where they share a processor.

    Returns:
        What became of each candidate, in order; of equal merges only the first.
    """
    queue = plan.queue()
    study = _begin_study(plan, place, name, identity)
    with contextlib.closing(study):
        study.fill(queue)
        done = sum(trial.state.is_finished() for trial in study.trials()[: len(queue)])
        total = len(queue) * plan.objective.all_tokens
        with (
            _helpers(helpers, helper_threads),
            progress("search, tokens", total, done=done * plan.objective.all_tokens) as advance,
        ):
            worker = Worker(plan, study, bench, advance)
            worker.work()
        found = worker.outcomes()
    outcomes: dict[str, Outcome] = {}
    for _, outcome in sorted(found.items()):
        outcomes.setdefault(outcome.candidate.key, outcome)
    _speak(list(outcomes.values()), plan.objective)
    return list(outcomes.values())


def _begin_study(plan: SearchPlan, place: Place, name: str, identity: Mapping[str, Any]) -> Study:
    """The study, as far as it is; a journal that is damaged is put aside and begun anew."""

    def begin() -> Study:
        stale = plan.section.stale_seconds
        study = Study(place, name, identity, plan.sampler(), begin=True, stale_seconds=stale)
        study.trials()  # reads all of it
        return study

    try:
        return begin()
    except DamagedJournalError as error:
        if not isinstance(place, Path):
            raise
        aside = free_name(place)
        place.rename(aside)
        say(f"  {str(error).partition(';')[0]}; it is kept as {aside.name} and scored again")
        return begin()


@contextlib.contextmanager
def _helpers(commands: Sequence[Sequence[str]], threads: int | None) -> Iterator[None]:
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    started = [
        subprocess.Popen(list(command), env=environment, stdout=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        yield
    finally:
        # The queue is empty: they end by themselves, and are ended where this one failed.
        for process in started:
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()


def _speak(outcomes: Sequence[Outcome], objective: Objective) -> None:
    tokens = sum(outcome.tokens for outcome in outcomes)
    whole = len(outcomes) * objective.all_tokens
    merging = sum(outcome.merge_seconds for outcome in outcomes)
    seconds = merging + sum(outcome.score_seconds for outcome in outcomes)
    count = {
        status: sum(outcome.status == status for outcome in outcomes)
        for status in ("complete", "dropped", "failed")
    }
    failed = f", {count['failed']} failed" if count["failed"] else ""
    say(
        f"  {len(outcomes)} candidates: {count['complete']} scored in full, {count['dropped']} "
        f"dropped early{failed}; {tokens:,} of {whole:,} tokens ({tokens / max(whole, 1):.0%}), "
        f"{seconds:.0f} s, {merging / max(seconds, 1e-9):.1%} of it merging"
    )


class Scorer:
    """Scores candidates in full and keeps what was scored in a file, so that nothing is scored
    twice when the stage is interrupted.

    Args:
        bench: where candidates are merged.
        log: `.json` file.
    """

    def __init__(self, bench: Merging, log: Path) -> None:
        self._bench = bench
        self._log = log
        self._known = _known_scores(log)

    def score(
        self,
        outcome: Outcome,
        objective: Objective,
        *,
        part: str,
        known: Mapping[str, NDArray[np.float64]] | None = None,
        counts: Mapping[str, int] | None = None,
        advance: Advance = lambda *_: None,
    ) -> dict[str, NDArray[np.float64]]:
        """Losses of a candidate, in the objective's order.

        Args:
            outcome: whose.
            objective: of the sets.
            part: what the sets are called in the file.
            known: beginnings that need not be scored.
            counts: items that are to be known, by set; by default all of all sets.
            advance: is told of tokens scored.
        """
        key = f"{part}/{outcome.candidate.key}"
        try:
            kept = {name: unpack(text) for name, text in self._known.get(key, {}).items()}
        except DamagedScoresError as error:
            say(f"  {self._log}: {error}; {outcome.candidate.name} is scored again")
            kept = {}
        losses = {name: np.asarray(values) for name, values in (known or {}).items()}
        for name, values in kept.items():
            if len(values) > len(losses.get(name, ())):
                losses[name] = values
        wanted = {name: len(r.order) for name, r in objective.sets.items()}
        wanted = wanted if counts is None else dict(counts)
        if all(len(losses.get(name, ())) >= count for name, count in wanted.items()):
            advance(objective.all_tokens, "")
            return losses
        self._bench.apply(outcome.candidate.config)
        score_missing(self._bench, outcome.candidate, objective, losses, wanted)
        self._known[key] = {name: pack(values) for name, values in losses.items()}
        write_json(self._log, self._known)
        advance(objective.all_tokens, outcome.candidate.name)
        return losses


def _known_scores(log: Path) -> dict[str, dict[str, str]]:
    """What a file of scores holds; nothing where it is damaged, with a word."""
    if not log.is_file():
        return {}
    try:
        known = load_json(log)
    except ToolkitError:
        known = None
    if not isinstance(known, dict) or not all(isinstance(row, dict) for row in known.values()):
        say(f"  {log}: is damaged; what stood there is scored again")
        return {}
    return known
