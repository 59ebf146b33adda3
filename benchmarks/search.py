"""The default search on a run that exists, against the same work done by mergekit-yaml and lm-eval.

python benchmarks/search.py [--runs runs] [--recipe finance] [--parts search,race,peers,control]
                            [--work FOLDER]

search   the recipe's own search into an empty journal: seconds, and the share spent merging
race     the same without a race: tokens, seconds, and whether the choice is the same or tied
peers    three of its candidates by `mergekit-yaml` and `lm_eval` on the same documents, median,
         times the number of candidates
control  the same training budget spent on the general source alone (as long as `make cpt`): an
         instruct model gets better at any raw text from any training; this tells how much. Both
         specialists are scored on the test sets; nothing is chosen by it

All is done in a temporary folder beside the run; with --work in one that stays, where a control
that was interrupted in training goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from toolkit.data.config import StageSection
from toolkit.json_lines import split_lines
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.pipeline.merge_output import named
from toolkit.pipeline.merge_search import Search, prepare_search
from toolkit.pipeline.models import ensure_cpt
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import merge_stage
from toolkit.recipe.model import ModelSection
from toolkit.search.config import RaceSection
from toolkit.search.objective import Objective
from toolkit.search.queue import SearchPlan
from toolkit.search.race import Rivals, best_of, rivals_among, run_race
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import GENERAL, SPECIALIST, Candidate, alphas_by_name, sweep_point
from toolkit.search.worker import Outcome, score_missing
from toolkit.select.candidates import candidate_rows, cannot_be_told_apart
from toolkit.stage import read_manifest

PARTS = ("search", "race", "peers", "control")
PEERS = 3
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--recipe", default="finance")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"--parts: {', '.join(sorted(unknown))} unknown; there are {', '.join(PARTS)}.")
    run = Run.open(given.recipe, given.runs)
    with contextlib.ExitStack() as stack:
        folder = given.work
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=given.runs))
        Path(folder).mkdir(parents=True, exist_ok=True)
        bench = Benchmark(run, Path(folder))
        if "search" in parts or "race" in parts or "peers" in parts:
            bench.search()
        if "race" in parts:
            bench.race()
        if "peers" in parts:
            bench.peers()
        if "control" in parts:
            bench.control()


class Benchmark:
    """Works beside a run, whose stages data and cpt are complete; nothing of it is changed."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.general, self.data, self.specialist = (
            run.root / name for name in ("general", "data", "cpt")
        )
        self.stage = merge_stage(run, self._inputs(self.specialist))
        self.seconds = 0.0
        self.outcomes: list[Outcome] = []
        self.search_of: Search | None = None

    def prepared(self) -> Search:
        return prepare_search(self._inputs(self.specialist), self.stage)

    def _inputs(self, specialist: Path) -> MergeInputs:
        return MergeInputs(
            self.run.name, self.run.recipe, self.general, {SPECIALIST: specialist}, self.data
        )

    def search(self) -> None:
        search = self.search_of = self.prepared()
        began = time.perf_counter()
        self.outcomes = self._run(search, search.plan, "race")
        self.seconds = time.perf_counter() - began
        merging = sum(outcome.merge_seconds for outcome in self.outcomes)
        print(
            f"search: {len(self.outcomes)} candidates in {self.seconds:.0f} s with loading, "
            f"{merging:.1f} s of it merging ({merging / self.seconds:.1%})"
        )

    def _run(self, search: Search, plan: SearchPlan, name: str) -> list[Outcome]:
        journal = self.folder / f"{name}.jsonl"
        return run_search(plan, journal, name, {"benchmark": name}, search.bench())

    def race(self) -> None:
        search = self.search_of or self.prepared()
        raced = search.plan.objective
        whole: Objective = search.objective(search.parts.search)
        section = search.recipe.search.model_copy(update={"race": RaceSection(enabled=False)})
        plan = SearchPlan(search.plan.spaces, section, whole, search.plan.seed)
        began = time.perf_counter()
        full = self._run(search, plan, "full")
        seconds = time.perf_counter() - began
        chosen, best = _best(self.outcomes, raced), _best(full, whole)
        tokens = [sum(outcome.tokens for outcome in of) for of in (self.outcomes, full)]
        scorer = Scorer(search.bench(), self.folder / "pair.json")
        first, second = (scorer.score(item, whole, part="search") for item in (chosen, best))
        difference = whole.domain_difference(first, second)
        tied = cannot_be_told_apart(whole, first, second, 0.95)
        print(
            f"race: {tokens[0]:,} against {tokens[1]:,} tokens ({tokens[0] / tokens[1]:.0%}), "
            f"{self.seconds:.0f} against {seconds:.0f} s; {chosen.candidate.name} against "
            f"{best.candidate.name}: {difference.estimate:+.5f} ± "
            f"{1.96 * np.sqrt(difference.variance):.5f}, "
            f"{'the same or tied' if tied else 'NOT tied'}"
        )
        # The same candidates, raced on the losses that full scoring left: nothing else differs.
        replayed, share = _replay(full, raced)
        tied = cannot_be_told_apart(whole, replayed.losses, best.losses, 0.95)
        print(
            f"race on the candidates of full scoring: {share:.0%} of the tokens, "
            f"{replayed.candidate.name}, {'the same or tied' if tied else 'NOT tied'}"
        )

    def peers(self) -> None:
        search = self.search_of or self.prepared()
        rows = [
            {"text": text}
            for text in _texts(self.data / "validation.jsonl", [s.ids for s in search.parts.search])
        ]
        (self.folder / "documents.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (self.folder / "task.yaml").write_text(yaml.safe_dump(_task(self.folder)))
        candidates = _spread(self.outcomes, PEERS)
        merges, evaluations = [], []
        for number, candidate in enumerate(candidates):
            places = {name: str(path) for name, path in search.inputs.folders.items()}
            config = named(candidate.config, places, _bfloat16())
            plain = json.loads(config.model_dump_json(exclude_none=True))
            (self.folder / "m.yaml").write_text(yaml.safe_dump(plain))
            out = self.folder / f"merged{number}"
            merges.append(_timed([*_tool("mergekit-yaml"), self.folder / "m.yaml", out]))
            evaluations.append(_timed([*_tool("lm_eval"), *_lm_eval(self.folder, out)]))
            print(f"  {candidate.name}: mergekit {merges[-1]:.1f} s, lm-eval {evaluations[-1]:.1f}")
        one = statistics.median(np.add(merges, evaluations).tolist())
        count = len(self.outcomes)
        print(
            f"peers: median of {PEERS} {one:.1f} s a candidate, times {count}: {one * count:.0f} s "
            f"(not run); {one * count / self.seconds:.1f} times as long as the search"
        )

    def control(self) -> None:
        run = self._general_alone()
        both, alone = self._on_test(self.specialist), self._on_test(ensure_cpt(run))
        for name, raced in both.objective.sets.items():
            for title, losses, against in (
                ("domain and replay", both.specialist, both.general),
                ("general text alone", alone.specialist, alone.general),
                ("the first against the second", both.specialist, alone.specialist),
            ):
                difference = raced.difference(losses[name], against[name])
                print(
                    f"control, {name} ({raced.items.role}, {raced.items.unit}), {title}: "
                    f"{difference.interval(0.95).words(sign='+')}"
                )

    def _general_alone(self) -> Run:
        """The run's training over as many tokens, all of them of its general sources."""
        recipe, results = self.run.recipe, read_manifest(self.data)["results"]
        sources = recipe.data.sources
        shares = {n: s.weight or 1.0 for n, s in sources.items() if s.role == "general"}
        shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        amounts = results["train"]
        tokens = amounts["domain_tokens"] + amounts["general_tokens"]
        stages = recipe.data.stages or (StageSection(name="train", tokens=tokens, mixture=shares),)
        control = recipe.model_copy(
            update={
                "model": ModelSection(path=self.general),
                "tokenizer": None,  # the general model has its new tokens already
                "data": recipe.data.model_copy(
                    update={
                        "stages": tuple(s.model_copy(update={"mixture": shares}) for s in stages)
                    }
                ),
            }
        )
        name = f"{self.run.name}-control"
        print(f"control: {tokens:,} training tokens, of {', '.join(shares)} alone")
        return Run(name, control, self.folder / name, None, (), self.folder)

    def _on_test(self, specialist: Path) -> OnTest:
        """Losses of the general model and of a specialist; no choice is made by them."""
        search = prepare_search(self._inputs(specialist), self.stage)
        objective = search.objective(search.test)
        bench, outcomes = search.bench(), [_outcome(sweep_point(share)) for share in (0.0, 1.0)]
        losses: list[dict[str, Any]] = []
        for outcome in outcomes:
            bench.apply(outcome.candidate.config)
            losses.append({})
            score_missing(bench, outcome.candidate, objective, losses[-1])
        return OnTest(objective, *losses)


@dataclass(frozen=True)
class OnTest:
    """Losses on the test sets, by set, in the objective's order."""

    objective: Objective
    general: dict[str, Any]
    specialist: dict[str, Any]


def _outcome(candidate: Candidate) -> Outcome:
    return Outcome(candidate, "complete", {}, 0.0, 0, 0.0, 0.0, 0)


def _best(outcomes: Sequence[Outcome], objective: Objective) -> Outcome:
    rows = [row for row in candidate_rows(outcomes, objective) if row.is_complete]
    within = [row for row in rows if row.general_loss_bound <= objective.tolerance]
    return min(within, key=lambda row: row.domain).outcome


def _replay(full: Sequence[Outcome], objective: Objective) -> tuple[Outcome, float]:
    """The race run over losses that are all known: its choice, and its share of the tokens."""
    known: dict[str, dict[str, Any]] = {}
    stayed: list[Outcome] = []
    fixed = {outcome.candidate.name for outcome in full[:9]}  # the two models and the sweep
    for outcome in full:
        losses: dict[str, Any] = {}

        def score(
            counts: Mapping[str, int], outcome: Outcome = outcome, losses: Any = losses
        ) -> None:
            for name, count in counts.items():
                losses[name] = outcome.losses[name][: max(count, len(losses.get(name, ())))]

        def rivals() -> Rivals:
            plain = [outcome for outcome in stayed if outcome.candidate.name in fixed]
            alphas = alphas_by_name(o.candidate for o in plain)
            points = {alphas[o.candidate.name]: known[o.candidate.name] for o in plain}
            return rivals_among(points, objective)

        is_endpoint = outcome.candidate.name in (GENERAL, SPECIALIST)
        is_shown = outcome.candidate.name in fixed
        if run_race(objective, losses, score, rivals, may_drop=not is_endpoint, is_shown=is_shown):
            stayed.append(outcome)
        known[outcome.candidate.name] = losses
    tokens = sum(objective.tokens(losses) for losses in known.values())
    names = {outcome.candidate.name: outcome for outcome in stayed}
    best = best_of([known[name] for name in names], known[GENERAL], objective)
    chosen = next(outcome for name, outcome in names.items() if known[name] is best)
    return chosen, tokens / (len(full) * objective.all_tokens)


def _texts(path: Path, ids: Sequence[Sequence[str]]) -> list[str]:
    wanted = {name for names in ids for name in names}
    rows = map(json.loads, split_lines(path.read_text(encoding="utf-8")))
    return [row["text"] for row in rows if row["id"] in wanted]


def _spread(outcomes: Sequence[Outcome], count: int) -> list[Candidate]:
    """One of each method first."""
    methods = {outcome.candidate.config.merge_method: outcome.candidate for outcome in outcomes[2:]}
    rest = [outcome.candidate for outcome in outcomes[2:]]
    return [*list(methods.values())[:count], *rest[: max(0, count - len(methods))]]


def _task(folder: Path) -> dict[str, Any]:
    return {
        "task": "documents",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
        "metadata": {"version": 1.0},
    }


def _lm_eval(folder: Path, model: Path) -> list[str]:
    arguments = f"pretrained={model},dtype=bfloat16,max_length={WINDOW}"
    words = ["--model", "hf", "--model_args", arguments, "--tasks", "documents"]
    return [*words, "--include_path", str(folder), "--device", "cpu", "--batch_size", "16"]


def _bfloat16() -> Any:
    import torch

    return torch.bfloat16


def _tool(name: str) -> list[str]:
    return [str(Path(sys.executable).parent / name)]


def _timed(command: Sequence[Any]) -> float:
    began = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
