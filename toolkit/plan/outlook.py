"""What a run will take on this machine, said in one line before it begins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from toolkit.checkpoint.config import ShapeSection
from toolkit.errors import ToolkitError
from toolkit.json_lines import iterate_rows
from toolkit.library_errors import first_line
from toolkit.machine import (
    Precision,
    ProductSpeeds,
    choose_training_precision,
    current_device,
    product_speeds,
)
from toolkit.pipeline.run import Run
from toolkit.plan.cost import SEARCH, Work, training_work
from toolkit.plan.devices import CPU, Device, Fleet
from toolkit.plan.evidence import Looked, look
from toolkit.plan.fit import misfit, ways_to_train
from toolkit.plan.memory import Memory
from toolkit.plan.model import Located, MeasuredModel, locate_model
from toolkit.plan.sample import sample_source
from toolkit.plan.shape import recomputed, training_flops
from toolkit.plan.speed import this_machine
from toolkit.plan.table import time_words
from toolkit.plan.token_budget import StageAmount, stage_amounts
from toolkit.plan.words import FolderTokenizer
from toolkit.progress import say
from toolkit.recipe.schema import Recipe
from toolkit.stage import MANIFEST, read_manifest

Goal = Literal["cpt", "merge"]

READ_SECONDS = 2.0
"""For a look at the documents of all sources together."""

TRAINING_SHARE: dict[Precision, float] = {"bf16": 0.60, "fp32": 0.72}
SCORING_SHARE: dict[Precision, float] = {"bf16": 0.80, "fp32": 0.80}
"""Share of what products alone reach that training and scoring reached in the finance run
(dev/LOG.md; scoring in float32 is taken to be as in bfloat16). The rest is attention, norms, the
optimizer, and small batches."""

SCORED_SHARE = 0.45
"""Of scoring every candidate in full: what races took, a little more."""

LONG_SECONDS = 3600.0
_ONCE_SECONDS = 45.0
"""Converting the model, preparing some hundred documents, reports: a run's smaller parts."""


def say_outlook(run: Run, goal: Goal) -> None:
    """Print how long a run will take here and how much memory, unless it is up to date.

    An estimate must never stop a run: whatever keeps it from being made is said in its place.
    """
    if (run.root / goal / MANIFEST).is_file():
        return
    try:
        lines = describe_outlook(run, goal)
    except Exception as error:  # of whatever kind: what would stop the run itself says so there
        say(f"{run.name}: how long it will take here cannot be told ({first_line(error)})")
        return
    for line in lines:
        say(line)


def describe_outlook(run: Run, goal: Goal) -> list[str]:
    """Lines on what a run will take, from a look at its documents and this machine's speed.

    Args:
        run: run of the recipe.
        goal: stage that ends it.

    Raises:
        ToolkitError: documents or the model cannot be read.
    """
    recipe, located = run.recipe, locate_model(run)
    if goal == "cpt" and not recipe.trains:
        return []  # refused by the stage
    speeds = product_speeds()
    precision = choose_training_precision(recipe.train.precision)
    if located.shape is None:
        return [f"{run.name}: {located.why or 'the model is not here'}"]
    looked = _look_briefly(recipe, located)
    amounts = stage_amounts(recipe.data, recipe.train, looked.amounts) if recipe.trains else []
    longest_block = max([recipe.data.sequence_length, *(a.sequence_length for a in amounts)])
    measured = _expected_speed(recipe, located.shape, amounts, speeds, precision)
    work = training_work(recipe, amounts, looked, located.shape, measured)
    training_seconds, search_seconds = _seconds_left(run, work, goal)
    total_seconds = None
    if training_seconds is not None:
        total_seconds = training_seconds + search_seconds + _ONCE_SECONDS
    if not recipe.trains:
        return [f"{_time_words(run, goal, total_seconds)}; nothing is trained"]
    fleet = Fleet(1, _this_device(measured))
    ways = ways_to_train(located.shape, recipe.train, longest_block, fleet, located.model_type)
    memory_words = _memory_words(ways[0].memory, fleet.device)
    expected_words = f"{_time_words(run, goal, total_seconds)}, {memory_words}"
    lines = [f"{expected_words}; trains in {speeds.describe(precision)} on the {speeds.device}"]
    model_name = recipe.model.name or recipe.model.hub or run.name
    if (problem := misfit(ways, fleet, [], model_name)) is not None:
        lines.append(f"  careful: {problem}")
    # Advice for those who would wait; a short run is only described.
    if total_seconds is not None and training_seconds is not None and total_seconds > LONG_SECONDS:
        lines.append(f"  {_ways_to_shorten(training_seconds, search_seconds, amounts)}")
    return lines


def _look_briefly(recipe: Recipe, located: Located) -> Looked:
    seconds_per_source = READ_SECONDS / len(recipe.data.sources)
    samples = {
        name: sample_source(
            name, source, recipe.data.cleaning, seed=recipe.seed, seconds=seconds_per_source
        )
        for name, source in recipe.data.sources.items()
    }
    tokenizer = FolderTokenizer(located.tokenizer) if located.tokenizer is not None else None
    return look(recipe.data, samples, tokenizer)


def _expected_speed(
    recipe: Recipe,
    shape: ShapeSection,
    amounts: list[StageAmount],
    speeds: ProductSpeeds,
    precision: Precision,
) -> MeasuredModel:
    """Tokens per second of training and scoring, from products alone."""
    length = amounts[0].sequence_length if amounts else recipe.data.sequence_length
    lora_rank = recipe.train.lora.rank if recipe.train.lora is not None else None
    again = recomputed(recipe.train.gradient_checkpointing)
    training_rate = TRAINING_SHARE[precision] * speeds.flops[precision]
    # Models are stored in bfloat16 as a rule, and scored in the type that is fast.
    fast_type: Precision = "bf16" if speeds.fastest == "bf16" else "fp32"
    scoring_rate = SCORING_SHARE[fast_type] * speeds.flops[fast_type]
    training_cost = training_flops(shape, length, lora_rank=lora_rank, again=again)
    # Scoring is the forward pass alone, a third of training.
    scoring_cost = training_flops(shape, recipe.evaluate.window_tokens) / 3.0
    return MeasuredModel(
        training_tokens_per_second=training_rate / training_cost,
        reading_tokens_per_second=scoring_rate / scoring_cost,
        flops=training_rate,
    )


def _this_device(measured: MeasuredModel) -> Device:
    import torch

    device = current_device()
    if device.type == "cpu":
        return this_machine(None)
    # An accelerator's memory, where torch can tell it.
    torch_module = getattr(torch, device.type, None)
    device_properties = getattr(torch_module, "get_device_properties", None)
    memory_bytes = (
        float(device_properties(device).total_memory) if device_properties is not None else math.inf
    )
    return Device(device.type, memory_bytes, measured.flops or math.nan, 0.0, 1.0, is_measured=True)


def _seconds_left(run: Run, work: list[Work], goal: Goal) -> tuple[float | None, float]:
    """Of training and of the search; what is done already does not count."""
    training_seconds = [stage.seconds for stage in work if stage.name != SEARCH]
    known_seconds = [seconds for seconds in training_seconds if seconds is not None]
    is_known = bool(training_seconds if run.recipe.trains else work)
    if not is_known or len(known_seconds) < len(training_seconds):
        return None, 0.0
    training_left = sum(known_seconds) * _fraction_left(run.root, run.recipe.train.epochs)
    if goal != "merge":
        return training_left, 0.0
    search_seconds = sum(stage.seconds or 0.0 for stage in work if stage.name == SEARCH)
    return training_left, search_seconds * SCORED_SHARE


def _fraction_left(root: Path, epochs: int) -> float:
    """Of training, where it was begun before."""
    if (root / "cpt" / MANIFEST).is_file():
        return 0.0
    metrics_log = root / "cpt.partial" / "metrics.jsonl"
    try:
        data_results = read_manifest(root / "data")["results"]["train"]
        trained_tokens = sum(float(row.get("tokens", 0)) for _, row in iterate_rows(metrics_log))
        all_tokens = float(data_results["domain_tokens"] + data_results["general_tokens"])
        return max(0.0, 1.0 - trained_tokens / (epochs * all_tokens))
    # Where nothing was begun there is no log, or not even data: all of it is left.
    except (ToolkitError, OSError, ValueError, KeyError, TypeError):
        return 1.0


def _time_words(run: Run, goal: Goal, seconds: float | None) -> str:
    goal_words = (
        "until the merge is chosen" if goal == "merge" else "until the specialist is trained"
    )
    time_left = "a time that cannot be told" if seconds is None else f"about {time_words(seconds)}"
    return f"{run.name}: {time_left} {goal_words}"


def _memory_words(memory: Memory, device: Device) -> str:
    memory_name = (
        "this machine's memory" if device.name == CPU else f"the {device.name} device's memory"
    )
    return f"{memory.total / 1e9:.1f} GB of {memory_name} ({device.memory_bytes / 1e9:.0f} GB)"


def _ways_to_shorten(training: float, search: float, amounts: list[StageAmount]) -> str:
    """What would bring a long run down to an hour."""
    tokens = sum(amount.tokens for amount in amounts)
    seconds_for_training = LONG_SECONDS - search - _ONCE_SECONDS
    ideas = []
    if seconds_for_training > 60.0 and training > seconds_for_training:
        fewer_tokens = int(tokens * seconds_for_training / training)
        ideas.append(
            f"about {fewer_tokens:,} training tokens in place of {tokens:,.0f} "
            "(train: {max_tokens: ...} in the split of the sources)"
        )
    if search > 0.25 * LONG_SECONDS:
        ideas.append("fewer search.num_trials, or smaller validation sets (max_tokens)")
    ideas.append("a GPU, or a smaller model; `toolkit plan` compares devices")
    return f"to finish within an hour: {'; '.join(ideas)}"
