"""The merge stage: search on the tuning sets, one choice, one look at the test sets, one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.checkpoint.folder import stored_dtype
from toolkit.evaluate.power import power_of
from toolkit.machine import DTYPE_NAMES
from toolkit.manifest import MANIFEST, Stage, hash_json, read_manifest
from toolkit.merge.run import to_yaml
from toolkit.progress import progress, say
from toolkit.recipe import Recipe
from toolkit.search.final import MERGE, ScoredTestSets, document_rows, final_figures
from toolkit.search.ledger import CONFIRMATIONS, LEDGER, TestLedger, note_confirmation
from toolkit.search.objective import Losses, Objective
from toolkit.search.outcome import as_json, by_item, sweep_rows
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import GENERAL, SPECIALIST
from toolkit.search.worker import Outcome
from toolkit.select import Choice, knee, pareto_front
from toolkit.select.decide import Decision, decide
from toolkit.select.ladder import as_rows
from toolkit.select.reason import sweep_verdict
from toolkit.select.sweep_tests import Settings
from toolkit.select.tuning_losses import TuningLosses
from toolkit.stages.merged import named, references, write_model
from toolkit.stages.powering import say_power
from toolkit.stages.reporting import write_report
from toolkit.stages.searching import (
    PARTIAL_SCORES,
    Search,
    cache_file,
    continue_precision,
    hash_of_test,
    num_workers,
    prepare_search,
    threads_each,
)

Floats = NDArray[np.float64]
_CONFIRM, _TEST = PARTIAL_SCORES

SEEN_BY_BEST = (
    "The specialist is the best of its training's states by some of these tuning documents "
    "(train.use: best), so what is found on them flatters it a little; test documents were not "
    "seen."
)


def run_choosing(
    name: str,
    recipe: Recipe,
    stage: Stage,
    general: Path,
    specialist: Path,
    data: Path,
    *,
    others: Mapping[str, Path] | None = None,
    helpers: Sequence[Sequence[str]] = (),
    score_test_again: bool = False,
) -> None:
    """Run the merge stage.

    Args:
        name: of the recipe, for the report.
        recipe: all of it.
        stage: the merge stage.
        general: folder of the general model.
        specialist: folder of the specialist.
        data: folder of the data stage.
        others: folders of the recipe's further models, by name.
        helpers: commands of workers to start beside this process.
        score_test_again: whether the test documents may be scored for another choice.
    """
    with stage.running() as work:
        precision = continue_precision(name, recipe, work, general)
        search = prepare_search(
            name, recipe, stage, general, specialist, data, others, precision=precision
        )
        ledger = TestLedger(
            stage.folder.with_name(LEDGER),
            hash_of_test(search.test),
            {key: stage.inputs[key] for key in ("general", "specialist")},
        )
        if ledger.count and not score_test_again:
            say(f"  the test documents were scored before ({ledger.count} times; see {LEDGER})")
        threads = threads_each(num_workers(recipe))
        if threads is not None:
            torch.set_num_threads(threads)
        bench = search.bench(cache=cache_file(stage))
        power = say_power(search, bench)
        items = sum(len(item) for item in search.parts.search)
        say(f"  {len(search.plan.queue())} candidates on {items} tuning items")
        outcomes = run_search(
            search.plan,
            search.place(work),
            search.name,
            search.identity,
            bench,
            helpers=helpers,
            helper_threads=threads,
        )
        verdict = _decide(search, outcomes, Scorer(bench, work / _CONFIRM))
        _count_confirmations(search, verdict, stage)
        chosen = verdict.chosen
        say(f"  chosen: {chosen.candidate.name}")

        ledger.begin(chosen.candidate.key, chosen.candidate.name, again=score_test_again)
        losses = _score_test(search, outcomes, chosen, Scorer(bench, work / _TEST))
        names = references(search.folders, stage.all_runs)
        config = named(chosen.candidate.config, names, stored_dtype(general))
        folders = {names[name]: folder for name, folder in search.folders.items()}
        write_model(config, folders, work, recipe.seed)
        results = _results(name, search, outcomes, verdict, losses)
        results["test_scorings"] = ledger.count
        results["power"] = [one.as_json() for one in power]
        results["precision"] = {
            "scoring": precision,
            "training": read_manifest(specialist)["results"].get("precision")
            if (specialist / MANIFEST).is_file()
            else None,
        }
        write_report(
            results,
            work,
            stage=stage,
            recipe=recipe,
            general=general,
            specialist=specialist,
            merge_yaml=to_yaml(config),
        )
        leftovers = [path.name for path in work.glob("*.json.*") if path.suffix[1:] in DTYPE_NAMES]
        stage.finish(results, drop=(_TEST, _CONFIRM, *leftovers))


@dataclass(frozen=True)
class _Verdict:
    decision: Decision
    beat_sweep: dict[str, Any]
    remarks: list[str]

    @property
    def chosen(self) -> Outcome:
        return self.decision.chosen

    @property
    def choice(self) -> Choice:
        return self.decision.choice


def _decide(search: Search, outcomes: Sequence[Outcome], scorer: Scorer) -> _Verdict:
    """The plain sweep is tested on all tuning documents, what promises more on those set aside."""
    section, recipe = search.recipe.search, search.recipe
    objective, separate = search.plan.objective, search.parts.are_separate
    losses = TuningLosses(
        objective,
        search.objective(search.parts.confirm) if separate else None,
        search.objective(search.tuning) if separate else objective,
        scorer,
    )
    settings = Settings(
        section.sweep, section.refine, section.confirm_candidates, recipe.select.confidence
    )
    decision = decide(outcomes, losses, settings, lambda line: say(f"  {line}"))
    shown = _shown_losses(decision, losses)
    remarks = _too_small(losses.whole, *shown, recipe.select.confidence)
    if search.parts.note and decision.confirmations:
        remarks.append(f"Confirmed on the search's own documents: {search.parts.note}.")
    remarks += [f"{item.name}: {item.note}." for item in search.test if item.note]
    if recipe.train.use == "best":
        remarks.append(SEEN_BY_BEST)
    for line in remarks:
        say(f"  {line}")
    verdict = sweep_verdict(decision.choice.chosen, decision.confirmations, losses)
    return _Verdict(decision, verdict, remarks)


def _count_confirmations(search: Search, verdict: _Verdict, stage: Stage) -> None:
    """Say where the documents set aside had confirmed merges of another search before this one."""
    if not (verdict.decision.confirmations and search.parts.are_separate):
        return
    before = note_confirmation(
        stage.folder.with_name(CONFIRMATIONS),
        hash_of_test(search.parts.confirm),
        hash_json(search.identity),
        verdict.chosen.candidate.name,
    )
    if before:
        verdict.remarks.append(
            f"Other methods were confirmed on documents that had confirmed those of {before} other "
            f"{'search' if before == 1 else 'searches'} before ({CONFIRMATIONS}): of several such "
            "searches one errs more often than is said of each."
        )
        say(f"  {verdict.remarks[-1]}")


def _shown_losses(
    decision: Decision, losses: TuningLosses
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Losses of the chosen merge and of the general model on all general tuning documents; of the
    safest step of the sweep where nothing was chosen."""
    by_name = {outcome.candidate.name: outcome for outcome in decision.outcomes}
    merge = decision.chosen if decision.choice.any_merge else by_name[decision.steps[0].name]
    names = list(losses.whole.tolerances)
    return losses.on_all(merge, names), losses.on_all(by_name[GENERAL], names)


def _too_small(objective: Objective, losses: Losses, start: Losses, confidence: float) -> list[str]:
    """Sentences on general sets that cannot see their tolerance, as this merge scatters."""
    found = [
        power_of(
            name,
            "general",
            objective.sets[name].items.unit,
            len(objective.sets[name].items),
            limit,
            objective.set_change(name, losses, start),
            confidence,
        )
        for name, limit in objective.tolerances.items()
    ]
    return [one.sentence for one in found if not one.is_enough]


def _score_test(
    search: Search, outcomes: Sequence[Outcome], chosen: Outcome, scorer: Scorer
) -> dict[str, dict[str, list[float]]]:
    """Losses on the test sets by model, in the order of the items."""
    objective = search.objective(search.test)
    by_name = {outcome.candidate.name: outcome for outcome in outcomes}
    wanted = {GENERAL: by_name[GENERAL], SPECIALIST: by_name[SPECIALIST], MERGE: chosen}
    different = {outcome.candidate.key for outcome in wanted.values()}
    found: dict[str, dict[str, list[float]]] = {}
    with progress("test, tokens", len(different) * objective.all_tokens) as advance:
        for label, outcome in wanted.items():
            told = advance if outcome.candidate.key in different else (lambda *_: None)
            different.discard(outcome.candidate.key)
            losses = by_item(objective, scorer.score(outcome, objective, part="test", advance=told))
            found[label] = {
                item.name: [losses[item.name][name] for name in item.ids] for item in search.test
            }
    return found


def _results(
    name: str,
    search: Search,
    outcomes: Sequence[Outcome],
    verdict: _Verdict,
    losses: Mapping[str, Mapping[str, list[float]]],
) -> dict[str, Any]:
    """What `report.json` holds, but for the number of test scorings."""
    recipe = search.recipe
    section = recipe.select
    decision = verdict.decision
    front = pareto_front(decision.options)
    tested = {item.name: item for item in search.test}
    objective = search.plan.objective
    return {
        "recipe": name,
        "description": recipe.description,
        "chosen": verdict.chosen.candidate.name,
        "reason": verdict.choice.reason,
        "any_merge": verdict.choice.any_merge,
        "tolerance": section.general_tolerance,
        "confidence": section.confidence,
        "sets": [
            {
                "name": item.name,
                "role": item.role,
                "unit": item.unit,
                "items_tuning": len(item),
                "items_test": len(tested[item.name]) if item.name in tested else 0,
                "groups_tuning": item.num_groups,
                "groups_test": tested[item.name].num_groups if item.name in tested else 0,
                "one_group": bool(item.name in tested and tested[item.name].is_of_one_group),
                "speaks_for": tested[item.name].note if item.name in tested else "",
                "tolerance": objective.tolerances.get(item.name),
            }
            for item in search.tuning
        ],
        "candidates": [
            as_json(row, row.name in decision.choice.qualified) for row in decision.rows
        ],
        "front": front,
        "knee": knee(decision.options, front),
        "sweep": sweep_rows(decision.outcomes, objective, section.confidence),
        "ladder": as_rows(decision.steps, decision.changes),
        "beat_sweep": verdict.beat_sweep,
        "remarks": verdict.remarks,
        "search_tokens": sum(outcome.tokens for outcome in outcomes),
        "full_tokens": len(outcomes) * objective.all_tokens,
        "tuning": _counts(search.tuning),
        "test": _counts(search.test),
        **final_figures(ScoredTestSets(search.test, recipe.search.weights, losses)),
        "documents": document_rows(losses, search.test),
    }


def _counts(sets: Sequence[Any]) -> dict[str, int]:
    return {
        role: sum(len(item) for item in sets if item.role == role) for role in ("domain", "general")
    }
