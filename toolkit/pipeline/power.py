"""What the sets of a recipe can see, asked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.checkpoint.load import load_causal_model
from toolkit.evaluate.load import load_sets
from toolkit.machine import dtype_of
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.pipeline.merge_search import (
    build_objective,
    cache_file,
    prepare_search,
    with_scoring_precision,
)
from toolkit.pipeline.run import Run
from toolkit.pipeline.set_power import SPLITS, claims, measure_power, say_power
from toolkit.pipeline.specialist import trained_folder
from toolkit.progress import progress, say
from toolkit.search.config import RaceSection
from toolkit.search.objective import Objective
from toolkit.search.space import SPECIALIST
from toolkit.stage import MANIFEST
from toolkit.statistics.power import SetPower

# As four-bit formats round: 32 entries share a scale, integers go from -7 to 7.
_BLOCK, _LEVELS = 32, 7.0


def run_power(run: Run) -> list[SetPower]:
    """Say what a recipe's validation sets can see: from the general model and a first merge where
    there is a specialist, else from the general model and itself rounded to four bits. Trains
    nothing."""
    from toolkit.pipeline.models import (
        ensure_data,
        ensure_general,
        ensure_models,
        ensure_specialists,
    )
    from toolkit.pipeline.stages import merge_stage

    general, data = ensure_general(run), ensure_data(run)
    # Only looked at: `ensure_specialist` would train for hours what is asked about here.
    if run.recipe.trains:
        specialist = trained_folder(run)
        if not (specialist / MANIFEST).is_file():
            return _power_of_general(run, general, data)
        specialists = {SPECIALIST: specialist}
    else:
        specialists = ensure_specialists(run)
    inputs = MergeInputs(run.name, run.recipe, general, specialists, data, ensure_models(run))
    search = prepare_search(inputs, stage := merge_stage(run, inputs))
    return say_power(search, search.bench(cache=cache_file(stage)))


def _power_of_general(run: Run, general: Path, data: Path) -> list[SetPower]:
    recipe = with_scoring_precision(run.recipe, general)
    validation, test = (load_sets(recipe.evaluate, data, general, split) for split in SPLITS)
    objective = build_objective(recipe, validation, RaceSection(enabled=False))
    dtype = dtype_of(recipe.evaluate.precision)
    model = load_causal_model(general, dtype).eval()
    # In this order: the second line rounds the very model that the first one scored.
    start = _losses(model, objective)
    power = measure_power(objective, _losses(round_to_four_bits(model), objective), start)
    say("  what the validation sets can see; there is no specialist yet, so scatter is that of the")
    say("  general model rounded to four bits, a stand-in for a merge:")
    for line in (*(one.sentence for one in power), *claims(validation, test)):
        say(f"    {line}")
    return power


def _losses(model: Any, objective: Objective) -> Mapping[str, NDArray[np.float64]]:
    names = list(dict.fromkeys([*objective.weights, *objective.tolerances]))
    with progress("scoring", len(names)) as advance:
        losses = {}
        for name in names:
            raced = objective.sets[name]
            # In the order of the race, which the objective expects losses in.
            rows = raced.order.tolist()
            losses[name] = np.asarray(raced.items.score(model, rows), dtype=np.float64)
            advance(1, name)
    return losses


@torch.no_grad()
def round_to_four_bits(model: torch.nn.Module) -> torch.nn.Module:
    """Round every matrix to 15 levels per 32 entries, in place: a model that lost a little."""
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.numel() % _BLOCK == 0:
            # Blocks run across rows where a row is no multiple of 32: it is a stand-in, not a
            # format.
            blocks = parameter.detach().float().reshape(-1, _BLOCK)
            # A block of zeros has no largest entry to divide by.
            scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / _LEVELS
            parameter.copy_((torch.round(blocks / scale) * scale).reshape(parameter.shape))
    return model
