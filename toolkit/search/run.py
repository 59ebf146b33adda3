"""A whole search: the study is queued, workers are started beside this one, all is scored."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
    identity: Mapping[str, object],
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
        num_done = sum(trial.state.is_finished() for trial in study.trials()[: len(queue)])
        total = len(queue) * plan.objective.all_tokens
        with (
            _helpers(helpers, helper_threads),
            progress("search, tokens", total, done=num_done * plan.objective.all_tokens) as advance,
        ):
            worker = Worker(plan, study, bench, advance)
            worker.work()
        outcome_by_number = worker.outcomes()
    outcome_by_key: dict[str, Outcome] = {}
    for _, outcome in sorted(outcome_by_number.items()):
        outcome_by_key.setdefault(outcome.candidate.key, outcome)
    _speak(list(outcome_by_key.values()), plan.objective)
    return list(outcome_by_key.values())


def _begin_study(
    plan: SearchPlan, place: Place, name: str, identity: Mapping[str, object]
) -> Study:
    """The study, as far as it is; a journal that is damaged is put aside and begun anew."""

    def begin() -> Study:
        stale = plan.section.stale_seconds
        study = Study(place, name, identity, plan.sampler(), begin=True, stale_seconds=stale)
        # A journal is only read when it is asked: a damaged line shows now, before any work.
        study.trials()  # reads all of it
        return study

    try:
        return begin()
    except DamagedJournalError as error:
        if not isinstance(place, Path):
            raise
        kept_path = free_name(place)
        place.rename(kept_path)
        say(f"  {str(error).partition(';')[0]}; it is kept as {kept_path.name} and scored again")
        return begin()


@contextlib.contextmanager
def _helpers(commands: Sequence[Sequence[str]], threads: int | None) -> Iterator[None]:
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    helper_processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            # This process's bar shows the progress of all; errors of helpers still come by stderr.
            process = subprocess.Popen(list(command), env=environment, stdout=subprocess.DEVNULL)
            helper_processes.append(process)
        yield
    finally:
        # The queue is empty: they end by themselves, and are ended where this one failed.
        for process in helper_processes:
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()


def _speak(outcomes: Sequence[Outcome], objective: Objective) -> None:
    scored_tokens = sum(outcome.tokens for outcome in outcomes)
    all_tokens = len(outcomes) * objective.all_tokens
    merge_seconds = sum(outcome.merge_seconds for outcome in outcomes)
    total_seconds = merge_seconds + sum(outcome.score_seconds for outcome in outcomes)
    num_by_status = {
        status: sum(outcome.status == status for outcome in outcomes)
        for status in ("complete", "dropped", "failed")
    }
    failed_words = f", {num_by_status['failed']} failed" if num_by_status["failed"] else ""
    say(
        f"  {len(outcomes)} candidates: {num_by_status['complete']} scored in full, "
        f"{num_by_status['dropped']} dropped early{failed_words}; {scored_tokens:,} of "
        f"{all_tokens:,} tokens ({scored_tokens / max(all_tokens, 1):.0%}), {total_seconds:.0f} s, "
        f"{merge_seconds / max(total_seconds, 1e-9):.1%} of it merging"
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
        score_key = f"{part}/{outcome.candidate.key}"
        try:
            kept_losses = {
                name: unpack(text) for name, text in self._known.get(score_key, {}).items()
            }
        except DamagedScoresError as error:
            say(f"  {self._log}: {error}; {outcome.candidate.name} is scored again")
            kept_losses = {}
        losses = {name: np.asarray(values) for name, values in (known or {}).items()}
        for name, values in kept_losses.items():
            # Whichever knows more: both are beginnings of the same order.
            if len(values) > len(losses.get(name, ())):
                losses[name] = values
        wanted_counts = {name: len(r.order) for name, r in objective.sets.items()}
        wanted_counts = wanted_counts if counts is None else dict(counts)
        if all(len(losses.get(name, ())) >= count for name, count in wanted_counts.items()):
            advance(objective.all_tokens, "")
            return losses
        self._bench.apply(outcome.candidate.config)
        score_missing(self._bench, outcome.candidate, objective, losses, wanted_counts)
        self._known[score_key] = {name: pack(values) for name, values in losses.items()}
        write_json(self._log, self._known)
        advance(objective.all_tokens, outcome.candidate.name)
        return losses


def _known_scores(log: Path) -> dict[str, dict[str, str]]:
    """What a file of scores holds; nothing where it is damaged, with a word."""
    if not log.is_file():
        return {}
    try:
        known_scores = load_json(log)
    except ToolkitError:
        known_scores = None
    if not isinstance(known_scores, dict) or not all(
        isinstance(row, dict) for row in known_scores.values()
    ):
        say(f"  {log}: is damaged; what stood there is scored again")
        return {}
    return known_scores
