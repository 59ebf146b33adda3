"""Models on tasks: each with intervals, and pairwise on the same items."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from typing_extensions import NotRequired

from toolkit.checkpoint.load import load_causal_model, load_model_config
from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate.cache import ScoreCache
from toolkit.evaluate.config import EvaluateSection, MultipleChoiceSection, TaskSection
from toolkit.evaluate.load import refuse_same_names, settle_scoring
from toolkit.evaluate.sets import EvaluationSet
from toolkit.library_errors import check_writable, computing, missing_library
from toolkit.machine import cache_folder, check_cache, dtype_of
from toolkit.progress import progress, say
from toolkit.section import parse_section
from toolkit.stage import content_hash, write_json
from toolkit.statistics.bootstrap import Floats, bootstrap_figures, intervals
from toolkit.statistics.hypothesis import holm, mcnemar, paired_permutation
from toolkit.statistics.interval import Interval, Sign
from toolkit.statistics.proportions import share_difference, share_interval
from toolkit.tokenizer_files import load_tokenizer

_RESAMPLES = 10_000
_ONE_MINUS = "1 - "


class IntervalFigures(TypedDict):
    """An estimate with its 95 % interval; an end that nothing is known of is None."""

    estimate: float
    low: float | None
    high: float | None


PairFigures = TypedDict(
    "PairFigures",
    {"from": str, "to": str, "difference": IntervalFigures, "p": float, "holm": float},
)
"""Two models on the same items: `to` minus `from`, its p-value, and that adjusted for all pairs."""


class TaskFigures(TypedDict):
    """Figures of a set under each model, and between each two."""

    unit: str
    higher_is_better: bool
    num_items: int
    test: str
    """Behind the p-values of pairs, and behind their intervals where items are right or wrong."""

    models: dict[str, IntervalFigures]
    pairs: list[PairFigures]


class ItemLosses(TypedDict):
    """Losses of a set's items under each model."""

    ids: list[str]
    losses: dict[str, list[float]]


class ComparisonFigures(TypedDict):
    """What `toolkit eval` finds: folders by model, figures and item losses by set."""

    models: dict[str, str]
    tasks: dict[str, TaskFigures]
    items: NotRequired[dict[str, ItemLosses]]


def run_evaluation(
    models: Sequence[Path],
    *,
    tasks: Sequence[str] = (),
    include_path: Path | None = None,
    bigbench: Sequence[str] = (),
    limit: int | None = None,
    out: Path | None = None,
) -> ComparisonFigures:
    """Score models on the same items, print a table, and write the figures where asked.

    Args:
        models: folders.
        tasks: of lm-eval; `name+5` sets the number of examples in the prompt.
        include_path: folder with task files of the user's own.
        bigbench: tasks of BIG-bench.
        limit: items of each task at most.
        out: JSON file.

    Returns:
        The figures, as plain values.

    Raises:
        ConfigError: no task is named, or two models have one name.
        CheckpointError: a folder holds no model.
        EvaluationError: a task cannot be loaded or scored.
    """
    if not tasks and not bigbench:
        raise ConfigError("toolkit eval: name what to score with --tasks or --bigbench.")
    if (missing := missing_library("lm_eval")) is not None:
        raise ConfigError(f"toolkit eval: {missing}.")
    model_labels = _labels(models)
    check_cache()  # scores are kept there
    if out is not None:
        check_writable(out.absolute().parent)
    # All folders are looked at before the first is scored, which may take hours.
    for folder in models:
        load_model_config(folder)
    task_sections = [_task_section(task, include_path, limit) for task in tasks]
    choices = [MultipleChoiceSection(name=task, bigbench=task, limit=limit) for task in bigbench]
    folders_by_label = dict(zip(model_labels, models, strict=True))
    sets, losses_by_set = _score_models(folders_by_label, task_sections, choices)
    results: ComparisonFigures = {
        "models": {label: str(folder) for label, folder in folders_by_label.items()},
        "tasks": {
            set_name: figures_of(sets[set_name], losses_by_set[set_name]) for set_name in sets
        },
    }
    show_figures(results["tasks"])
    if out is not None:
        results["items"] = {
            set_name: {"ids": list(items.ids), "losses": losses_by_set[set_name]}
            for set_name, items in sets.items()
        }
        write_json(out, results)
        say(f"Written to {out}.")
    return results


def _score_models(
    folders: Mapping[str, Path],
    tasks: Sequence[TaskSection],
    choices: Sequence[MultipleChoiceSection],
) -> tuple[dict[str, EvaluationSet], dict[str, dict[str, list[float]]]]:
    """Sets by name, and their losses under each model.

    Raises:
        EvaluationError: models were given different items.
    """
    losses_by_set: dict[str, dict[str, list[float]]] = {}
    sets_by_name: dict[str, EvaluationSet] = {}
    # One type of arithmetic for all: a difference between two types would look like one of models.
    section = settle_scoring(EvaluateSection(), *folders.values())
    for label, folder in folders.items():
        for items, losses in _score(folder, label, tasks, choices, section):
            # Models are compared item by item, so each must be given the same items in the same
            # order; the hashes cover prompts with their examples.
            first_items = sets_by_name.setdefault(items.name, items)
            if list(first_items.item_hashes) != list(items.item_hashes):
                raise EvaluationError(
                    f"{items.name}: {label} was given other items than the models before it, so "
                    "they cannot be compared in pairs; score it by itself."
                )
            losses_by_set.setdefault(items.name, {})[label] = losses
    return sets_by_name, losses_by_set


def _labels(models: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in models]
    labels = names if len(set(names)) == len(names) else [folder.as_posix() for folder in models]
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise ConfigError(f"toolkit eval: {repeated[0]} is named twice; give each model once.")
    return labels


def _task_section(text: str, include_path: Path | None, limit: int | None) -> TaskSection:
    task_name, _, num_shots = text.partition("+")
    if num_shots and not num_shots.isdecimal():
        raise ConfigError(f"--tasks {text}: after the + must stand a number of examples.")
    values = {
        "task": task_name,
        "include_path": None if include_path is None else str(include_path),
        "num_fewshot": num_shots or None,
        "limit": limit,
    }
    return parse_section(TaskSection, values, where=f"--tasks {text}", what="task")


def _score(
    folder: Path,
    label: str,
    tasks: Sequence[TaskSection],
    choices: Sequence[MultipleChoiceSection],
    section: EvaluateSection,
) -> list[tuple[EvaluationSet, list[float]]]:
    from toolkit.evaluate.tasks import question_sets, task_sets  # lm-eval takes seconds to import

    tokenizer = load_tokenizer(folder)
    task_items = [
        items
        for task in tasks
        for items in task_sets(task, tokenizer, section, None, all_metrics=True)
    ]
    task_items += [
        items
        for questions in choices
        for items in question_sets(questions, tokenizer, section, None, metrics=("acc", "acc_norm"))
    ]
    refuse_same_names(task_items, "toolkit eval", "score them in two commands")
    score_cache, name = ScoreCache(cache_folder() / "scores.jsonl"), content_hash(folder)
    # After the tasks were read: a wrong name should not cost the loading of a model.
    loaded_model = load_causal_model(folder, dtype_of(section.precision))
    scored_sets = []
    with progress(label, len(task_items)) as advance:
        for items in task_items:
            with computing(folder, EvaluationError, "cannot be scored"):
                item_losses = score_cache.score(loaded_model, name, items, together=task_items)
            scored_sets.append((items, item_losses))
            advance(1, items.name)
    return scored_sets


def figures_of(items: EvaluationSet, losses: Mapping[str, Sequence[float]]) -> TaskFigures:
    """Figures of a set under each model and between each two, as plain values.

    Where the loss is one minus a metric, the metric itself is given: more is better again. A
    p-value is McNemar's where items are right or wrong, and intervals those of the same test, else
    of a permutation by groups.

    Args:
        items: the set.
        losses: of its items under each model, by the model's label.
    """
    is_rising = items.unit.startswith(_ONE_MINUS) or items.unit == "error"
    item_values = np.array(list(losses.values()))
    if is_rising:
        item_values = 1.0 - item_values
    is_binary = _is_binary(item_values, items)
    model_labels = list(losses)
    pairs = list(itertools.combinations(range(len(model_labels)), 2))
    return {
        "unit": items.unit.removeprefix(_ONE_MINUS) if items.unit != "error" else "accuracy",
        "higher_is_better": is_rising,
        "num_items": len(items),
        "test": "McNemar's score test" if is_binary else "permutation of groups",
        "models": dict(zip(model_labels, _levels(item_values, items, is_binary), strict=True)),
        "pairs": _pair_figures(item_values, model_labels, pairs, items, is_binary) if pairs else [],
    }


def _pair_figures(
    values: Floats,
    labels: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    items: EvaluationSet,
    is_binary: bool,
) -> list[PairFigures]:
    # The bootstrap of few right-or-wrong answers has ends of no width; those of the test of shares
    # have some.
    if is_binary:
        is_right = (values > 0.5).tolist()
        p_values = [mcnemar(is_right[b], is_right[a]) for a, b in pairs]
        differences = [_plain(share_difference(is_right[b], is_right[a])) for a, b in pairs]
    else:
        p_values = [paired_permutation(values[b], values[a], items.groups) for a, b in pairs]
        differences = _intervals(np.array([values[b] - values[a] for a, b in pairs]), items)
    rows = zip(pairs, differences, p_values, holm(p_values), strict=True)
    return [
        {
            "from": labels[a],
            "to": labels[b],
            "difference": interval,
            "p": p_value,
            "holm": float(holm_value),
        }
        for (a, b), interval, p_value, holm_value in rows
    ]


def _is_binary(values: Floats, items: EvaluationSet) -> bool:
    """Whether items are right or wrong, and each stands for itself."""
    is_plain = items.scale == 1.0 and set(items.sizes) == {1} and len(items) > 1
    stands_alone = len(set(items.groups)) == len(items)
    return is_plain and stands_alone and set(np.unique(values).tolist()) <= {0.0, 1.0}


def _levels(values: Floats, items: EvaluationSet, is_binary: bool) -> list[IntervalFigures]:
    if is_binary:
        num_right = (values > 0.5).sum(axis=1).tolist()
        return [_plain(share_interval(count, len(items))) for count in num_right]
    return _intervals(values, items)


def _intervals(values: Floats, items: EvaluationSet) -> list[IntervalFigures]:
    if len(set(items.groups)) < 2:  # what another group would show is not known
        scaled_means = items.scale * values.sum(axis=1) / np.sum(items.sizes)
        return [_plain(Interval(float(e), -math.inf, math.inf)) for e in scaled_means]
    bootstrapped = bootstrap_figures(
        values, items.sizes, items.groups, resamples=_RESAMPLES, seed=0, scale=items.scale
    )
    return [_plain(interval) for interval in intervals(bootstrapped)]


def _plain(interval: Interval) -> IntervalFigures:
    # JSON has no infinity.
    low, high = (end if math.isfinite(end) else None for end in (interval.low, interval.high))
    return {"estimate": interval.estimate, "low": low, "high": high}


def show_figures(tasks: Mapping[str, TaskFigures]) -> None:
    """Print the figures of sets under each model, and between each two."""
    for set_name, task in tasks.items():
        better_side = "higher" if task["higher_is_better"] else "lower"
        tested = f", p-values by {task['test']}" if task["pairs"] else ""
        say(
            f"\n {set_name}: {task['unit']}, {better_side} is better, {task['num_items']} "
            f"items{tested}"
        )
        label_width = max(len(label) for label in task["models"])
        for label, interval in task["models"].items():
            say(f"   {label:{label_width}s}  {_shown(interval)}")
        for pair_figures in task["pairs"]:
            say(
                f"   {pair_figures['to']} - {pair_figures['from']}: "
                f"{_shown(pair_figures['difference'], '+')}, p {pair_figures['p']:.2g} (Holm "
                f"{pair_figures['holm']:.2g})"
            )


def _shown(interval: IntervalFigures, sign: Sign = "") -> str:
    low, high = interval["low"], interval["high"]
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    return Interval(interval["estimate"], *ends).words(sign=sign)
