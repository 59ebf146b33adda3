"""What the sets of a recipe can see, said before hours are spent on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.data.config import SplitName
from toolkit.errors import ToolkitError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.documents import likelihood_sets
from toolkit.evaluate.retention import LOSS, split_prompts
from toolkit.evaluate.sets import EvaluationSet
from toolkit.pipeline.merge_search import Search
from toolkit.pipeline.run import Run
from toolkit.progress import say
from toolkit.search.objective import Losses, Objective
from toolkit.search.space import GENERAL, Candidate
from toolkit.search.worker import Merging, score_missing
from toolkit.stage import read_manifest
from toolkit.statistics.paired import expected_change
from toolkit.statistics.power import SetPower, needed_answers, power_of
from toolkit.tokenizer_files import load_tokenizer

SPLITS: tuple[SplitName, ...] = ("validation", "test")

FIRST_ALPHA = 0.4
"""The first candidate is the plain mean nearest to this: far enough to scatter, near enough to be
chosen. It is of the sweep, so its scores are used again."""

ASSUMED_SCATTER = 0.04
"""Standard deviation of a document's change, in bits per byte, or an answer's, in nats per token:
of the plain mean of α 0.4 in the finance run (dev/LOG.md)."""

SCATTER_WORDS = (
    f"what a set sees: a document's change scatters by {ASSUMED_SCATTER:g} bits per byte, an "
    "answer's by as many nats per token; `toolkit power` measures it"
)


def say_power(search: Search, bench: Merging) -> list[SetPower]:
    """Score the general model and a first merge on the validation sets, and say what these can see
    and speak for.

    Args:
        search: of the recipe.
        bench: where merges are made; its cache keeps the scores for the search.
    """
    alpha = min(search.recipe.search.sweep or (FIRST_ALPHA,), key=lambda a: abs(a - FIRST_ALPHA))
    objective = search.objective(search.validation)
    first = search.plan.plain_mean(alpha)
    # With several specialists a domain set has a tolerance beside its weight: it is scored once.
    set_names = list(dict.fromkeys([*objective.weights, *objective.tolerances]))
    losses_by_model = {
        candidate.name: _score(bench, candidate, objective, set_names)
        # Both are candidates of the search: it finds these scores in the cache.
        for candidate in (search.plan.fixed[GENERAL], first)
    }
    set_powers = measure_power(objective, losses_by_model[first.name], losses_by_model[GENERAL])
    say(f"  what the validation sets can see, as {first.name} scatters against the general model:")
    for line in (*(one.sentence for one in set_powers), *claims(search.validation, search.test)):
        say(f"    {line}")
    return set_powers


def say_expected(run: Run, data: Path, general: Path, *, is_trained: bool) -> None:
    """Say what the sets of finished data will be able to see and to speak for, before hours go into
    a specialist; nothing where there is one, as scatter is then measured.

    Args:
        run: of the recipe.
        data: folder of the data stage.
        general: folder of the general model.
        is_trained: whether there is a specialist.
    """
    if is_trained:
        return
    recipe, tokenizer = run.recipe, load_tokenizer(general)
    separator_token = read_manifest(data)["results"]["separator_token_id"]
    # Only sets that files give: the general model's own answers would take it minutes to write.
    validation, test = (
        likelihood_sets(data / f"{split}.jsonl", tokenizer, separator_token, recipe.evaluate)
        for split in SPLITS
    )
    tolerances, confidence = recipe.select.tolerances, recipe.select.confidence
    common_tolerance = recipe.select.general_tolerance
    found = [
        power_of(
            one.name,
            one.role,
            one.unit,
            len(one),
            # The domain is to gain, so it has no tolerance that documents must suffice for.
            tolerances.get(one.name, common_tolerance) if one.role == "general" else None,
            expected_change(ASSUMED_SCATTER, one.num_groups),
            confidence,
        )
        for one in validation
    ]
    prompted, unknown = expect_prompts(recipe.evaluate, common_tolerance, tolerances, confidence)
    say(SCATTER_WORDS)
    for line in (*(one.sentence for one in found + prompted), *unknown, *claims(validation, test)):
        say(f"  {line.rstrip('.')}.")


def _score(
    bench: Merging, candidate: Candidate, objective: Objective, names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    losses: dict[str, NDArray[np.float64]] = {}
    # Made in any case, and scored only where the cache lacks something.
    bench.apply(candidate.config)
    counts = {name: len(objective.sets[name].order) for name in names}
    score_missing(bench, candidate, objective, losses, counts)
    return losses


def measure_power(objective: Objective, losses: Losses, start: Losses) -> list[SetPower]:
    """What each domain and general set can see, as one candidate scatters on it.

    Args:
        objective: of the sets.
        losses: of the candidate, in full.
        start: of the general model.
    """
    return [
        power_of(
            name,
            objective.sets[name].items.role,
            objective.sets[name].items.unit,
            len(objective.sets[name].items),
            None if name in objective.weights else objective.tolerances.get(name),
            objective.set_change(name, losses, start),
            objective.confidence,
        )
        for name in dict.fromkeys([*objective.weights, *objective.tolerances])
    ]


def claims(validation: Sequence[EvaluationSet], test: Sequence[EvaluationSet]) -> list[str]:
    """What sets can speak for, where that is less than one would think: a sentence for each."""
    claim_lines = {}
    for found in (*validation, *test):
        if found.note:
            # Both splits mostly carry the same note: said once.
            claim_lines[found.name, found.note] = f"{found.name}: {found.note}."
    return list(claim_lines.values())


def expect_prompts(
    evaluate: EvaluateSection,
    tolerance: float,
    tolerances: Mapping[str, float],
    confidence: float,
) -> tuple[list[SetPower], list[str]]:
    """The same of sets that do not come of documents; see `plan_power`."""
    prompt_powers: list[SetPower] = []
    unknown_sets: list[str] = []
    wanted = evaluate.retention
    if wanted.num_prompts and wanted.loss_role == "general":
        try:
            prompts = split_prompts(evaluate, "validation")
        except ToolkitError as error:
            unknown_sets.append(f"retention: {error}".rstrip("."))
        else:
            limit = tolerances.get(LOSS, wanted.loss_tolerance)
            # Prompts over one text get similar answers: as one group they count as one observation.
            change = expected_change(ASSUMED_SCATTER, len({prompt.group for prompt in prompts}))
            size = len(prompts)
            prompt_powers.append(
                power_of(LOSS, "general", "nats per token", size, limit, change, confidence)
            )
    unknown_sets += _answers(evaluate, tolerance, tolerances, confidence)
    return prompt_powers, unknown_sets


def _answers(
    evaluate: EvaluateSection,
    tolerance: float,
    tolerances: Mapping[str, float],
    confidence: float,
) -> list[str]:
    """Of questions and tasks only the number that a tolerance takes is known."""
    named_roles: Sequence[tuple[str, str]] = [
        *((choices.name, choices.role) for choices in evaluate.multiple_choice),
        *((task.task, task.role) for task in evaluate.tasks),
    ]
    sentences = []
    for name, role in named_roles:
        limit = tolerances.get(name, tolerance)
        if role == "general" and limit > 0.0 and math.isfinite(limit):
            needed_items = needed_answers(limit, 0.0, confidence)
            sentences.append(
                f"{name}: {needed_items} right-or-wrong items at least are needed to show a loss "
                f"under {limit:g}, even where no answer changes"
            )
    return sentences
