"""The merge stage: search on the validation sets, one choice, one look at the test sets, one model.

The chosen merge leaves as a plain mergekit configuration and as a model on disk; answers of the
three models, `report.json` and the page are written beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.checkpoint.folder import stored_dtype
from toolkit.errors import ToolkitError
from toolkit.generate.answers import answer_rows
from toolkit.generate.prompts import GENERAL_PROMPTS
from toolkit.json_lines import iterate_rows
from toolkit.machine import DTYPE_NAMES
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.to_disk import run_merge, to_yaml
from toolkit.pipeline.merge_search import (
    PARTIAL_SCORES,
    Search,
    cache_file,
    continue_precision,
    hash_of_test,
    num_workers,
    prepare_search,
    threads_each,
)
from toolkit.pipeline.set_power import say_power
from toolkit.progress import progress, say
from toolkit.recipe.schema import Recipe
from toolkit.report.again import again_of
from toolkit.report.page import write_page
from toolkit.search.objective import Losses, Objective
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import GENERAL, SPECIALIST
from toolkit.search.worker import Outcome
from toolkit.select.candidates import as_json, by_item, sweep_rows
from toolkit.select.choice import Choice, knee, pareto_front
from toolkit.select.decide import Decision, decide
from toolkit.select.ladder import as_rows
from toolkit.select.ledger import CONFIRMATIONS, LEDGER, TestLedger, note_confirmation
from toolkit.select.reason import sweep_verdict
from toolkit.select.sweep_tests import DecisionSettings
from toolkit.select.test_figures import MERGE, ScoredTestSets, document_rows, final_figures
from toolkit.select.validation_losses import ValidationLosses
from toolkit.stage import (
    MANIFEST,
    Stage,
    hash_file,
    hash_json,
    load_json,
    read_manifest,
    write_json,
)
from toolkit.statistics.power import power_of

Floats = NDArray[np.float64]
_CONFIRM, _TEST = PARTIAL_SCORES

SEEN_BY_BEST = (
    "The specialist is the best of its training's states by some of these validation documents "
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
        say(f"  {len(search.plan.queue())} candidates on {items} validation items")
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
    """The plain sweep is tested on all validation documents, what promises more on those set
    aside."""
    section, recipe = search.recipe.search, search.recipe
    objective, separate = search.plan.objective, search.parts.are_separate
    losses = ValidationLosses(
        objective,
        search.objective(search.parts.confirm) if separate else None,
        search.objective(search.validation) if separate else objective,
        scorer,
    )
    settings = DecisionSettings(
        section.sweep, section.refine, section.confirm_trials, recipe.select.confidence
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
    decision: Decision, losses: ValidationLosses
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Losses of the chosen merge and of the general model on all general validation documents; of
    the safest step of the sweep where nothing was chosen."""
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
                "items_validation": len(item),
                "items_test": len(tested[item.name]) if item.name in tested else 0,
                "groups_validation": item.num_groups,
                "groups_test": tested[item.name].num_groups if item.name in tested else 0,
                "one_group": bool(item.name in tested and tested[item.name].is_of_one_group),
                "speaks_for": tested[item.name].note if item.name in tested else "",
                "tolerance": objective.tolerances.get(item.name),
            }
            for item in search.validation
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
        "validation": _counts(search.validation),
        "test": _counts(search.test),
        **final_figures(ScoredTestSets(search.test, recipe.search.weights, losses)),
        "documents": document_rows(losses, search.test),
    }


def _counts(sets: Sequence[Any]) -> dict[str, int]:
    return {
        role: sum(len(item) for item in sets if item.role == role) for role in ("domain", "general")
    }


def references(folders: Mapping[str, Path], runs: Path) -> dict[str, str]:
    """How merge.yaml refers to models, so that nothing of this machine enters.

    Paths count from the folder the command runs in, or from the one that holds the folder of all
    runs; of a model that stands in neither only the folder's name is said.

    Args:
        folders: of the models, by the names that the search has for them.
        runs: folder of all runs.

    >>> places = {"general": Path("/models/llama"), "specialist": Path("/big/runs/x/cpt")}
    >>> references(places, Path("/big/runs"))
    {'general': './llama', 'specialist': './runs/x/cpt'}
    """
    paths = {name: _absolute(folder) for name, folder in folders.items()}
    bases = [_absolute(base) for base in (Path(), runs.parent)]
    found: dict[str, str] = {}
    for name, path in paths.items():
        base = next((b for b in bases if b != b.parent and path.is_relative_to(b)), path.parent)
        # Beginning with a dot, so that mergekit does not take it for a name on the hub.
        found[name] = f"./{path.relative_to(base).as_posix()}"
    texts = list(found.values())  # folders of one name are told apart by what they are
    return {name: text if texts.count(text) == 1 else f"./{name}" for name, text in found.items()}


def _absolute(path: Path) -> Path:
    """Without following links: a folder is spoken of where its owner sees it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def named(config: MergeConfig, names: Mapping[str, str], dtype: torch.dtype) -> MergeConfig:
    """A candidate as a plain mergekit configuration: float32 arithmetic, one cast.

    Args:
        config: of the candidate.
        names: what to call its models, by the names it has for them.
        dtype: that the merge is written in.
    """
    plain = json.loads(config.model_dump_json(exclude_none=True))

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: names.get(value, value) if key in {"model", "base_model"} else rename(value)
                for key, value in node.items()
            }
        return [rename(item) for item in node] if isinstance(node, list) else node

    whole = {**rename(plain), "dtype": "float32", "out_dtype": str(dtype).removeprefix("torch.")}
    return parse_merge_config(whole, where="merge.yaml")


def write_model(config: MergeConfig, folders: Mapping[str, Path], work: Path, seed: int) -> None:
    """Merge to disk beside the scores; done anew when a killed call left it half.

    Args:
        config: from `named`.
        folders: where its models stand, by what it calls them.
        work: folder of the stage.
        seed: of random methods.
    """
    merged = work / "model"
    if not merged.exists():
        with progress("writing the merge", 1) as advance:
            run_merge(config, merged, folders=folders, seed=seed)
            advance(1, "")
    for path in sorted(merged.iterdir()):
        path.rename(work / path.name)
    merged.rmdir()


def write_report(
    results: Mapping[str, Any],
    work: Path,
    *,
    stage: Stage,
    recipe: Recipe,
    general: Path,
    specialist: Path,
    merge_yaml: str,
) -> None:
    """Write `answers.json`, `report.json` and `report.html` beside the merged model.

    Args:
        results: of the merge stage.
        work: its folder, in which the merged model stands already.
        stage: the merge stage, for the hashes of what it read.
        recipe: all of it.
        general: folder of the general model.
        specialist: folder of the cpt stage, with its `metrics.jsonl`.
        merge_yaml: the chosen merge.
    """
    answers = _answers(recipe, {"general": general, "specialist": specialist, "merge": work}, work)
    hashes = {
        **stage.inputs,
        **{path.name: hash_file(path) for path in sorted(work.glob("*.safetensors"))},
    }
    values = recipe.model_dump(mode="json", exclude_unset=True)
    write_json(work / "report.json", results)
    write_page(
        results,
        work / "report.html",
        merge_yaml=merge_yaml,
        training=read_metrics(specialist / "metrics.jsonl"),
        answers=answers,
        again=again_of(results["recipe"], values, hashes),
    )


def _answers(recipe: Recipe, models: Mapping[str, Path], work: Path) -> list[dict[str, str]]:
    """Made once, even where the stage was interrupted after them."""
    path = work / "answers.json"
    if path.is_file():
        rows: list[dict[str, str]] = load_json(path)
        return rows
    try:
        rows = answer_rows(models, (*GENERAL_PROMPTS, *recipe.evaluate.prompts))
    except (ToolkitError, RuntimeError, ValueError, TypeError) as error:
        # They illustrate the figures, which are done: not worth losing a search for.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"  the report has no answers side by side: {first}")
        return []
    write_json(path, rows)
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a training log; none where there is no log."""
    if not path.is_file():
        return []
    return [row for _, row in iterate_rows(path, advice="run its stage again")]
