"""The merge stage: search on the tuning sets, a few confirmed, one choice, one look at the test
sets, one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.folder import stored_dtype
from toolkit.evaluate.power import too_small
from toolkit.machine import DTYPE_NAMES
from toolkit.manifest import Stage
from toolkit.merge.run import to_yaml
from toolkit.progress import progress, say
from toolkit.recipe import Recipe
from toolkit.search.final import MERGE, Resampler, document_rows, final_figures
from toolkit.search.ledger import LEDGER, TestLedger
from toolkit.search.objective import Losses, Objective
from toolkit.search.outcome import (
    Row,
    arranged,
    as_json,
    beat_sweep,
    by_item,
    candidate_rows,
    cannot_be_told_apart,
    confirmation_p_value,
    merged_parts,
    sweep_points,
    sweep_rows,
)
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import GENERAL, SPECIALIST
from toolkit.search.worker import Outcome
from toolkit.select import Candidate as Option
from toolkit.select import (
    Choice,
    Confirmed,
    choose,
    knee,
    pareto_front,
    qualified_names,
    shortlist,
)
from toolkit.stages.merged import named, references, write_model
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

_CONFIRM, _TEST = PARTIAL_SCORES


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
        items = sum(len(item) for item in search.parts.search)
        say(f"  {len(search.plan.queue())} candidates on {items} tuning documents")
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
        chosen = verdict.chosen
        say(f"  chosen: {chosen.candidate.name}")

        ledger.begin(chosen.candidate.key, chosen.candidate.name, again=score_test_again)
        losses = _score_test(search, outcomes, chosen, Scorer(bench, work / _TEST))
        names = references(search.folders, stage.folder.parent.parent)
        config = named(chosen.candidate.config, names, stored_dtype(general))
        folders = {names[name]: folder for name, folder in search.folders.items()}
        write_model(config, folders, work, recipe.seed)
        results = _results(name, search, outcomes, verdict, losses)
        results["test_scorings"] = ledger.count
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
    rows: list[Row]
    options: list[Option]
    choice: Choice
    chosen: Outcome
    beat_sweep: dict[str, Any]
    remarks: list[str]


def _decide(search: Search, outcomes: Sequence[Outcome], scorer: Scorer) -> _Verdict:
    """The few best are scored again on documents the search never saw, and one is chosen."""
    section, count = search.recipe.select, search.recipe.search.confirm_candidates
    rows = candidate_rows(outcomes, search.plan.objective)
    options = [_option(row) for row in rows if row.outcome.status != "failed"]
    by_name = {outcome.candidate.name: outcome for outcome in outcomes}
    finalists = shortlist(options, GENERAL, section, count)
    sweep_best, other_best = _sweep_against_rest(outcomes, options, section.general_tolerance)
    again = dict.fromkeys((*finalists, *filter(None, (sweep_best, other_best))))
    seen = _look_again(search, [by_name[name] for name in (GENERAL, *again)], scorer)

    where = " on the search's own documents, corrected for all candidates"
    if search.parts.are_separate:
        items = sum(len(item) for item in search.parts.confirm)
        where = f" on {items} documents that the search never saw"
    looked_at = seen.confirm
    start = looked_at[GENERAL]
    confirmed = [
        Confirmed(
            name,
            next(o for o in options if o.name == name).domain
            if not search.parts.are_separate
            else _domain(seen.whole_objective, seen.whole[name], seen.whole[GENERAL]),
            confirmation_p_value(seen.objective, looked_at[name], start),
            next(o for o in options if o.name == name).distance,
        )
        for name in finalists
    ]

    def is_tied(one: str, best: str) -> bool:
        pair = (seen.whole[one], seen.whole[best])
        pairs = max(len(confirmed) - 1, 1)
        return cannot_be_told_apart(seen.whole_objective, *pair, section.confidence, pairs)

    choice = choose(
        options,
        confirmed,
        is_tied,
        GENERAL,
        section,
        num_tests=None if search.parts.are_separate else len(outcomes) - 1,
        where=where,
    )
    remarks = _too_small(seen, looked_at, start, section.confidence)
    if search.parts.note:
        remarks.append(f"Confirmed on the search's own documents: {search.parts.note}.")
    remarks += [f"{item.name}: {item.note}." for item in search.test if item.note]
    for line in remarks:
        say(f"  {line}")
    return _Verdict(
        rows,
        options,
        choice,
        by_name[choice.chosen],
        beat_sweep(
            seen.objective,
            sweep_best or GENERAL,
            other_best,
            looked_at,
            section.confidence,
            where.split(",")[0],
        ),
        remarks,
    )


def _too_small(
    seen: _Seen, losses: Mapping[str, Losses], start: Losses, confidence: float
) -> list[str]:
    """Sentences on general sets that cannot see their tolerance, as the best merge scatters."""
    best = next((own for name, own in losses.items() if name != GENERAL), None)
    if best is None:
        return []
    lines = []
    for name, limit in seen.objective.tolerances.items():
        difference = seen.objective.sets[name].difference(best[name], start[name])
        unit = seen.objective.sets[name].items.unit
        error = math.sqrt(difference.variance)
        lines.append(too_small(name, limit, error, difference.seen, unit, confidence))
    return [line for line in lines if line is not None]


def _option(row: Row) -> Option:
    return Option(
        row.name, row.domain, row.general, row.general_loss_bound, row.distance, row.is_complete
    )


def _sweep_against_rest(
    outcomes: Sequence[Outcome], options: Sequence[Option], tolerance: float
) -> tuple[str | None, str | None]:
    """The best of the plain sweep, and the best of all else, within the tolerance."""
    swept = {outcome.candidate.name for _, outcome in sweep_points(outcomes)}
    # One that was dropped for the domain alone may not be known on general sets.
    within = [
        o for o in options if o.general_loss_bound <= tolerance or math.isinf(o.general_loss_bound)
    ]
    within.sort(key=lambda o: (o.domain, o.distance, o.name))
    sweep_best = next((o.name for o in within if o.name in swept), None)
    other_best = next((o.name for o in within if o.name not in swept), None)
    return sweep_best, other_best


@dataclass(frozen=True)
class _Seen:
    """Losses of those looked at again: on the documents set aside, and on all for tuning."""

    objective: Objective
    confirm: dict[str, Losses]
    whole_objective: Objective
    whole: dict[str, Losses]


def _look_again(search: Search, outcomes: Sequence[Outcome], scorer: Scorer) -> _Seen:
    first, separate = search.plan.objective, search.parts.are_separate
    aside = search.objective(search.parts.confirm) if separate else first
    whole_objective = search.objective(search.tuning) if separate else first
    confirm: dict[str, Losses] = {}
    whole: dict[str, Losses] = {}
    total = len(outcomes) * aside.all_tokens
    with progress("confirming, tokens", total) as advance:
        for outcome in outcomes:
            name = outcome.candidate.name
            on_search = scorer.score(outcome, first, part="search", known=outcome.losses)
            if not separate:
                confirm[name] = whole[name] = on_search
                advance(aside.all_tokens, name)
                continue
            found = scorer.score(outcome, aside, part="confirm", advance=advance)
            confirm[name] = found
            parts = merged_parts(by_item(first, on_search), by_item(aside, found))
            whole[name] = arranged(whole_objective, parts)
    return _Seen(aside, confirm, whole_objective, whole)


def _domain(objective: Objective, losses: Losses, general: Losses) -> float:
    return objective.domain(objective.estimates(losses, [general]))


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
    qualified = qualified_names(verdict.options, GENERAL, section)
    front = pareto_front(verdict.options)
    resampler = Resampler(
        search.test, recipe.search.weights, recipe.evaluate.resamples, recipe.seed
    )
    tested = {item.name: len(item) for item in search.test}
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
                "items_test": tested.get(item.name, 0),
                "tolerance": objective.tolerances.get(item.name),
            }
            for item in search.tuning
        ],
        "candidates": [as_json(row, row.name in qualified) for row in verdict.rows],
        "front": front,
        "knee": knee(verdict.options, front),
        "sweep": sweep_rows(outcomes, objective, section.confidence),
        "beat_sweep": verdict.beat_sweep,
        "remarks": verdict.remarks,
        "search_tokens": sum(outcome.tokens for outcome in outcomes),
        "full_tokens": len(outcomes) * objective.all_tokens,
        "tuning": _counts(search.tuning),
        "test": _counts(search.test),
        **final_figures(losses, resampler),
        "documents": document_rows(losses, search.test),
    }


def _counts(sets: Sequence[Any]) -> dict[str, int]:
    return {
        role: sum(len(item) for item in sets if item.role == role) for role in ("domain", "general")
    }
