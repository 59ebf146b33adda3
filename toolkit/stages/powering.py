"""What the sets of a recipe can see, said before hours are spent on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.checkpoint.load import load_causal_model
from toolkit.data.source_config import SplitName
from toolkit.evaluate.documents import likelihood_sets
from toolkit.evaluate.load import load_sets
from toolkit.evaluate.power import SetPower, power_of
from toolkit.evaluate.sets import EvaluationSet
from toolkit.machine import dtype_of
from toolkit.manifest import read_manifest
from toolkit.plan.power import ASSUMED_SCATTER, SCATTER_WORDS, expect_prompts
from toolkit.progress import progress, say
from toolkit.search.config import RaceSection
from toolkit.search.objective import Losses, Objective
from toolkit.search.space import GENERAL, Candidate, endpoint, sweep_point
from toolkit.search.worker import Merging, score_missing
from toolkit.stages.opening import Run
from toolkit.stages.searching import (
    Search,
    build_objective,
    cache_file,
    prepare_search,
    with_scoring_precision,
)
from toolkit.statistics.paired import expected_change
from toolkit.tokenizer_files import load_tokenizer

SPLITS: tuple[SplitName, ...] = ("tuning", "test")

FIRST_ALPHA = 0.4
"""The first candidate is the plain mean nearest to this: far enough to scatter, near enough to be
chosen. It is of the sweep, so its scores are used again."""

_BLOCK, _LEVELS = 32, 7.0


def say_power(search: Search, bench: Merging) -> list[SetPower]:
    """Score the general model and a first merge on the tuning sets, and say what these can see and
    speak for.

    Args:
        search: of the recipe.
        bench: where merges are made; its cache keeps the scores for the search.
    """
    alpha = min(search.recipe.search.sweep or (FIRST_ALPHA,), key=lambda a: abs(a - FIRST_ALPHA))
    objective = search.objective(search.tuning)
    first = sweep_point(alpha)
    names = [*objective.weights, *objective.tolerances]
    found = {
        candidate.name: _score(bench, candidate, objective, names)
        for candidate in (endpoint(GENERAL), first)
    }
    power = measure_power(objective, found[first.name], found[GENERAL])
    say(f"  what the tuning sets can see, as {first.name} scatters against the general model:")
    for line in (*(one.sentence for one in power), *claims(search.tuning, search.test)):
        say(f"    {line}")
    return power


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
    separator = read_manifest(data)["results"]["separator_token_id"]
    tuning, test = (
        likelihood_sets(data / f"{split}.jsonl", tokenizer, separator, recipe.evaluate)
        for split in SPLITS
    )
    tolerances, confidence = recipe.select.tolerances, recipe.select.confidence
    common = recipe.select.general_tolerance
    found = [
        power_of(
            one.name,
            one.role,
            one.unit,
            len(one),
            tolerances.get(one.name, common) if one.role == "general" else None,
            expected_change(ASSUMED_SCATTER, one.num_groups),
            confidence,
        )
        for one in tuning
    ]
    prompted, unknown = expect_prompts(recipe.evaluate, common, tolerances, confidence)
    say(SCATTER_WORDS)
    for line in (*(one.sentence for one in found + prompted), *unknown, *claims(tuning, test)):
        say(f"  {line.rstrip('.')}.")


def _score(
    bench: Merging, candidate: Candidate, objective: Objective, names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    losses: dict[str, NDArray[np.float64]] = {}
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
            objective.tolerances.get(name),
            objective.set_change(name, losses, start),
            objective.confidence,
        )
        for name in (*objective.weights, *objective.tolerances)
    ]


def claims(tuning: Sequence[EvaluationSet], test: Sequence[EvaluationSet]) -> list[str]:
    """What sets can speak for, where that is less than one would think: a sentence for each."""
    lines = {}
    for found in (*tuning, *test):
        if found.note:
            lines[found.name, found.note] = f"{found.name}: {found.note}."
    return list(lines.values())


def run_power(run: Run) -> list[SetPower]:
    """Say what a recipe's tuning sets can see: from the general model and a first merge where there
    is a specialist, else from the general model and itself rounded to four bits. Trains nothing."""
    from toolkit.stages.chain import ensure_data, ensure_general, ensure_models, merge_stage

    general, data = ensure_general(run), ensure_data(run)
    use = run.recipe.train.use
    specialist = run.root / (f"cpt-{use}" if use in {"anneal", "average"} else "cpt")
    if not (specialist / "manifest.json").is_file():
        return _power_of_general(run, general, data)
    others = ensure_models(run)
    stage = merge_stage(run, general, data, specialist, others)
    search = prepare_search(run.name, run.recipe, stage, general, specialist, data, others)
    return say_power(search, search.bench(cache=cache_file(stage)))


def _power_of_general(run: Run, general: Path, data: Path) -> list[SetPower]:
    recipe = with_scoring_precision(run.recipe, general)
    tuning, test = (load_sets(recipe.evaluate, data, general, split) for split in SPLITS)
    objective = build_objective(recipe, tuning, RaceSection(enabled=False))
    dtype = dtype_of(recipe.evaluate.precision)
    model = load_causal_model(general, dtype).eval()
    start = _losses(model, objective)
    power = measure_power(objective, _losses(round_to_four_bits(model), objective), start)
    say("  what the tuning sets can see; there is no specialist yet, so scatter is that of the")
    say("  general model rounded to four bits, a stand-in for a merge:")
    for line in (*(one.sentence for one in power), *claims(tuning, test)):
        say(f"    {line}")
    return power


def _losses(model: Any, objective: Objective) -> Mapping[str, NDArray[np.float64]]:
    names = [*objective.weights, *objective.tolerances]
    with progress("scoring", len(names)) as advance:
        losses = {}
        for name in names:
            raced = objective.sets[name]
            rows = raced.order.tolist()
            losses[name] = np.asarray(raced.items.score(model, rows), dtype=np.float64)
            advance(1, name)
    return losses


@torch.no_grad()
def round_to_four_bits(model: torch.nn.Module) -> torch.nn.Module:
    """Round every matrix to 15 levels per 32 entries, in place: a model that lost a little."""
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.numel() % _BLOCK == 0:
            blocks = parameter.detach().float().reshape(-1, _BLOCK)
            scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / _LEVELS
            parameter.copy_((torch.round(blocks / scale) * scale).reshape(parameter.shape))
    return model
