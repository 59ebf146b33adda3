"""The merge stage: search on the validation sets, one choice, one look at the test sets, one model.

What is searched stands in `merge_search`, how one of the candidates is chosen in `merge_choice`,
and what the stage leaves in `merge_output`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from toolkit.evaluate.sets import EvaluationSet
from toolkit.machine import DTYPE_NAMES
from toolkit.merge.to_disk import to_yaml
from toolkit.pipeline.merge_choice import (
    CandidateChoice,
    choose_candidate,
    count_confirmations,
    remark_training,
)
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.pipeline.merge_output import write_merge, write_report
from toolkit.pipeline.merge_search import (
    PARTIAL_SCORES,
    Search,
    cache_file,
    continue_precision,
    hash_of_test,
    num_workers,
    prepare_search,
    set_weights,
    sets_of_specialists,
    threads_each,
    with_learned,
)
from toolkit.pipeline.set_power import say_power
from toolkit.progress import progress, say
from toolkit.search.candidate_scorer import Bench
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import GENERAL, SPECIALIST, alphas_by_name
from toolkit.search.worker import Outcome
from toolkit.section import replace_values
from toolkit.select.candidates import by_item, candidate_result, sweep_points_of
from toolkit.select.choice import knee, pareto_front
from toolkit.select.ladder import ladder_results
from toolkit.select.ledger import LEDGER, TestLedger
from toolkit.select.results import (
    MergeResults,
    PowerResult,
    PrecisionUsed,
    RoleCounts,
    SetResult,
    SeveralResults,
)
from toolkit.select.test_figures import (
    MERGE,
    FinalFigures,
    ScoredTestSets,
    document_figures,
    final_figures,
)
from toolkit.stage import MANIFEST, Stage, read_manifest
from toolkit.statistics.power import SetPower

_CONFIRM, _TEST = PARTIAL_SCORES

TestLosses = Mapping[str, Mapping[str, Sequence[float]]]
"""Losses on the test sets by model and set, in the order of the items."""


def run_merge_stage(
    inputs: MergeInputs,
    stage: Stage,
    *,
    helpers: Sequence[Sequence[str]] = (),
    score_test_again: bool = False,
) -> MergeResults:
    """Run the merge stage.

    Args:
        inputs: what the merge is made from.
        stage: the merge stage.
        helpers: commands of workers to start beside this process.
        score_test_again: whether the test documents may be scored for another choice.
    """
    with stage.running() as work:
        # Sets, merges and settings are refused here, before the first score.
        search = prepare_search(inputs, stage, precision=continue_precision(inputs, work))
        search = with_learned(search, stage)
        ledger = _open_ledger(search, stage, score_test_again=score_test_again)
        bench = _open_bench(search, stage)
        # These scores are candidates' own and stay in the cache: the search begins with them.
        power = say_power(search, bench)
        trials = _run_trials(search, bench, work, helpers)
        # From here on nothing is tried any more: one choice, and remarks on how it was made.
        choice = choose_candidate(search, trials, Scorer(bench, work / _CONFIRM))
        choice = count_confirmations(search, choice, stage)
        choice = remark_training(search.recipe, choice)
        say(f"  chosen: {choice.candidate.name}")

        # Put down before the first test document is scored: a call that is killed meanwhile has
        # looked all the same.
        ledger.begin(choice.candidate.key, choice.candidate.name, again=score_test_again)
        losses = score_test_once(search, choice, Scorer(bench, work / _TEST))
        # The search made its merges in memory; only the chosen one is ever written to disk.
        merge, achieved = write_merge(choice.candidate.config, inputs, stage)
        results = collect_results(search, trials, choice, losses, ledger.count, power)
        results = replace_values(results, achieved=achieved)
        write_report(results, inputs, stage, to_yaml(merge))
        # Scores of another arithmetic, which `continue_precision` moved aside.
        leftovers = [path.name for path in work.glob("*.json.*") if path.suffix[1:] in DTYPE_NAMES]
        stage.finish(results.as_json(), drop=(_TEST, _CONFIRM, *leftovers))
    return results


def _open_ledger(search: Search, stage: Stage, *, score_test_again: bool) -> TestLedger:
    ledger = TestLedger(
        stage.folder.with_name(LEDGER),
        hash_of_test(search.test),
        {
            key: stage.inputs[key]
            for key in (GENERAL, *map(search.inputs.hash_key, search.inputs.specialists))
        },
    )
    if ledger.count and not score_test_again:
        say(f"  the test documents were scored before ({ledger.count} times; see {LEDGER})")
    return ledger


def _open_bench(search: Search, stage: Stage) -> Bench:
    """Where this process merges and scores, with its part of the processor."""
    # Helpers run beside this process on the same cores.
    threads = threads_each(num_workers(search.recipe))
    if threads is not None:
        torch.set_num_threads(threads)
    return search.bench(cache=cache_file(stage))


def _run_trials(
    search: Search, bench: Bench, work: Path, helpers: Sequence[Sequence[str]]
) -> list[Outcome]:
    num_items = sum(len(item) for item in search.parts.search)
    say(f"  {len(search.plan.queue())} candidates on {num_items} validation items")
    return run_search(
        search.plan,
        search.inputs.place(work),
        search.inputs.study,
        search.identity,
        bench,
        helpers=helpers,
        helper_threads=threads_each(num_workers(search.recipe)),
    )


def score_test_once(search: Search, choice: CandidateChoice, scorer: Scorer) -> TestLosses:
    """Losses of the two models and the chosen merge on the test sets; of several specialists each
    is scored, and their plain mean stands in the specialist's place."""
    # Scored in full, without a race: every figure on test sets is of all items.
    objective = search.objective(search.test)
    by_name = {outcome.candidate.name: outcome for outcome in choice.decision.outcomes}
    is_one = search.inputs.specialist is not None
    beside = by_name[SPECIALIST] if is_one else choice.decision.plain_mean
    outcomes = {GENERAL: by_name[GENERAL], SPECIALIST: beside, MERGE: choice.outcome}
    if not is_one:
        outcomes |= {name: by_name[name] for name in search.inputs.specialists}
    unscored = {outcome.candidate.key for outcome in outcomes.values()}
    losses_by_model: dict[str, dict[str, list[float]]] = {}
    with progress("test, tokens", len(unscored) * objective.all_tokens) as advance:
        for label, outcome in outcomes.items():
            # The chosen merge may be one of the two models, which is scored and counted once.
            told = advance if outcome.candidate.key in unscored else (lambda *_: None)
            unscored.discard(outcome.candidate.key)
            losses = by_item(objective, scorer.score(outcome, objective, part="test", advance=told))
            # Scores come in the drawing order of the race; figures want that of the items.
            losses_by_model[label] = {
                item.name: [losses[item.name][name] for name in item.ids] for item in search.test
            }
    return losses_by_model


def collect_results(
    search: Search,
    trials: Sequence[Outcome],
    choice: CandidateChoice,
    losses: TestLosses,
    test_scorings: int,
    power: Sequence[SetPower],
) -> MergeResults:
    """Every figure of the stage.

    Args:
        search: the study with its sets.
        trials: what the search tried.
        choice: the candidate that was chosen.
        losses: losses on the test sets.
        test_scorings: how often the test documents were scored.
        power: what the validation sets can see.
    """
    recipe, decision = search.recipe, choice.decision
    objective, confidence = search.plan.objective, recipe.select.confidence
    front = pareto_front(decision.options)
    own_sets = sets_of_specialists(recipe, search.test)
    weights = set_weights(recipe, search.test)
    final = final_figures(ScoredTestSets(search.test, weights, losses), own_sets)
    return MergeResults(
        recipe=search.inputs.name,
        description=recipe.description,
        chosen=choice.candidate.name,
        reason=decision.choice.reason,
        any_merge=decision.choice.any_merge,
        tolerance=recipe.select.general_tolerance,
        confidence=confidence,
        sets=_set_results(search),
        candidates=tuple(
            candidate_result(row, row.name in decision.choice.qualified) for row in decision.rows
        ),
        front=tuple(front),
        knee=knee(decision.options, front),
        sweep=tuple(sweep_points_of(decision.outcomes, objective, confidence)),
        ladder=ladder_results(decision.steps, decision.changes),
        beat_sweep=choice.beat_sweep,
        remarks=choice.remarks,
        search_tokens=sum(outcome.tokens for outcome in trials),
        # What the trials would have taken without races, for the reader to compare with.
        full_tokens=len(trials) * objective.all_tokens,
        validation=_count_items(search.validation),
        test=_count_items(search.test),
        models=final.models,
        gain_kept=final.gain_kept,
        loss_recovered=final.loss_recovered,
        sets_recovered=final.sets_recovered,
        documents=document_figures(losses, search.test),
        test_scorings=test_scorings,
        power=tuple(PowerResult.model_validate(one.as_json()) for one in power),
        precision=PrecisionUsed(
            scoring=recipe.evaluate.precision,
            training=_training_precision(search.inputs.specialist),
        ),
        several=_several_results(search, choice, final) if own_sets else None,
    )


def _several_results(
    search: Search, choice: CandidateChoice, final: FinalFigures
) -> SeveralResults:
    beside = choice.decision.plain_mean.candidate
    return SeveralResults(
        specialists=final.specialists,
        mean=beside.name,
        fraction=alphas_by_name([beside])[beside.name],
        weights=dict(search.plan.objective.weights),
        domain_tolerance=search.recipe.select.domain_tolerance,
    )


def _set_results(search: Search) -> tuple[SetResult, ...]:
    """Every set that figures are of: a source may give documents to one of the two splits only."""
    validation_sets = {item.name: item for item in search.validation}
    test_sets = {item.name: item for item in search.test}
    rows = []
    for name, item in {**validation_sets, **test_sets}.items():
        validation, test = validation_sets.get(name), test_sets.get(name)
        rows.append(
            SetResult(
                name=name,
                role=item.role,
                unit=item.unit,
                items_validation=0 if validation is None else len(validation),
                items_test=0 if test is None else len(test),
                groups_validation=0 if validation is None else validation.num_groups,
                groups_test=0 if test is None else test.num_groups,
                one_group=test is not None and test.is_of_one_group,
                speaks_for="" if test is None else test.note,
                tolerance=search.plan.objective.tolerances.get(name),
            )
        )
    return tuple(rows)


def _count_items(sets: Sequence[EvaluationSet]) -> RoleCounts:
    return RoleCounts(
        domain=sum(len(item) for item in sets if item.role == "domain"),
        general=sum(len(item) for item in sets if item.role == "general"),
    )


def _training_precision(specialist: Path | None) -> str | None:
    if specialist is None or not (specialist / MANIFEST).is_file():
        return None
    precision = read_manifest(specialist)["results"].get("precision")
    return precision if isinstance(precision, str) else None
