"""What a run will take on this machine, said in one line before it begins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from toolkit.checkpoint.config import ShapeSection
from toolkit.errors import ConfigError, ToolkitError
from toolkit.json_lines import iterate_rows
from toolkit.machine import (
    Precision,
    ProductSpeeds,
    choose_training_precision,
    current_device,
    product_speeds,
)
from toolkit.pipeline.run import Run
from toolkit.plan.cost import Work
from toolkit.plan.devices import CPU, Device, Fleet
from toolkit.plan.evidence import Looked, look
from toolkit.plan.fit import fits, misfit, ways_to_train
from toolkit.plan.memory import Memory
from toolkit.plan.model import Located, MeasuredModel, locate_model
from toolkit.plan.sample import sample_source
from toolkit.plan.shape import recomputed, training_flops
from toolkit.plan.speed import this_machine
from toolkit.plan.table import time_words
from toolkit.plan.token_budget import StageAmount, stage_amounts
from toolkit.plan.words import FolderTokenizer
from toolkit.plan.work import training_work
from toolkit.progress import say
from toolkit.recipe.schema import Recipe
from toolkit.stage import read_manifest

Goal = Literal["cpt", "merge"]

READ_SECONDS = 2.0
"""For a look at the documents of all sources together."""

TRAINING_SHARE: dict[Precision, float] = {"bf16": 0.60, "fp32": 0.72}
SCORING_SHARE: dict[Precision, float] = {"bf16": 0.80, "fp32": 0.80}
"""Of the operations that products alone reach: what training and scoring reached in the finance run
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
    if (run.root / goal / "manifest.json").is_file():
        return
    try:
        lines = describe_outlook(run, goal)
    except ConfigError:
        raise  # it would stop the run too
    except (ToolkitError, OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"{run.name}: how long it will take here cannot be told ({first})")
        return
    for line in lines:
        say(line)


def describe_outlook(run: Run, goal: Goal) -> list[str]:
    """Lines on what a run will take, from a look at its documents and this machine's speed.

    Args:
        run: the recipe's.
        goal: the stage that ends it.

    Raises:
        ToolkitError: documents or the model cannot be read.
    """
    recipe, located = run.recipe, locate_model(run)
    speeds = product_speeds()
    precision = choose_training_precision(recipe.train.precision)
    name = recipe.model.name or recipe.model.hub or run.name
    if located.shape is None:
        return [f"{run.name}: {located.why or 'the model is not here'}"]
    looked = _look(recipe, located)
    amounts = stage_amounts(recipe.data, recipe.train, looked.amounts)
    measured = _expect(recipe, located.shape, amounts, speeds, precision)
    work = training_work(recipe, amounts, looked, located.shape, measured)
    training, search = _seconds_left(run, work, goal)
    longest = max([recipe.data.sequence_length, *(a.sequence_length for a in amounts)])
    device = _this_device(measured)
    kind = located.model_type
    ways = ways_to_train(located.shape, recipe.train, longest, Fleet(1, device), kind)
    memory = ways[0].memory
    seconds = None if training is None else training + search + _ONCE_SECONDS
    lines = [_line(run, goal, seconds, memory, device, speeds, precision)]
    if not fits(memory, device):
        problem = misfit(ways, Fleet(1, device), [], name)
        lines += [f"  careful: {problem}"] if problem else []
    if seconds is not None and training is not None and seconds > LONG_SECONDS:
        lines.append(f"  {_shorter(training, search, amounts)}")
    return lines


def _is_trained(root: Path) -> bool:
    return (root / "cpt" / "manifest.json").is_file()


def _look(recipe: Recipe, located: Located) -> Looked:
    each = READ_SECONDS / len(recipe.data.sources)
    samples = {
        name: sample_source(name, source, recipe.data.cleaning, seed=recipe.seed, seconds=each)
        for name, source in recipe.data.sources.items()
    }
    tokenizer = FolderTokenizer(located.tokenizer) if located.tokenizer is not None else None
    return look(recipe.data, samples, tokenizer)


def _expect(
    recipe: Recipe,
    shape: ShapeSection,
    amounts: list[StageAmount],
    speeds: ProductSpeeds,
    precision: Precision,
) -> MeasuredModel:
    """Tokens per second of training and scoring, from products alone."""
    length = amounts[0].sequence_length if amounts else recipe.data.sequence_length
    rank = recipe.train.lora.rank if recipe.train.lora is not None else None
    again = recomputed(recipe.train.gradient_checkpointing)
    rate = TRAINING_SHARE[precision] * speeds.flops[precision]
    # Models are stored in bfloat16 as a rule, and scored in the type that is fast.
    fast: Precision = "bf16" if speeds.fastest == "bf16" else "fp32"
    reading = SCORING_SHARE[fast] * speeds.flops[fast]
    forward = training_flops(shape, recipe.evaluate.window_tokens) / 3.0
    each = training_flops(shape, length, lora_rank=rank, again=again)
    return MeasuredModel(
        training_tokens_per_second=rate / each,
        reading_tokens_per_second=reading / forward,
        flops=rate,
    )


def _this_device(measured: MeasuredModel) -> Device:
    import torch

    found = current_device()
    if found.type == "cpu":
        return this_machine(None)
    # An accelerator's memory, where torch can tell it.
    module = getattr(torch, found.type, None)
    properties = getattr(module, "get_device_properties", None)
    total = float(properties(found).total_memory) if properties is not None else math.inf
    return Device(
        found.type, total, measured.flops or math.nan, math.nan, 0.0, 1.0, is_measured=True
    )


def _seconds_left(run: Run, work: list[Work], goal: Goal) -> tuple[float | None, float]:
    """Of training and of the search; what is done already does not count."""
    training = [w.seconds for w in work if not w.name.startswith("merge search")]
    search = [w.seconds or 0.0 for w in work if w.name.startswith("merge search")]
    if not training or None in training:
        return None, 0.0
    left = sum(s for s in training if s is not None) * _fraction_left(run.root)
    return left, sum(search) * SCORED_SHARE if goal == "merge" else 0.0


def _fraction_left(root: Path) -> float:
    """Of training, where it was begun before."""
    if _is_trained(root):
        return 0.0
    log = root / "cpt.partial" / "metrics.jsonl"
    try:
        data = read_manifest(root / "data")["results"]["train"]
        done = sum(float(row.get("tokens", 0)) for _, row in iterate_rows(log))
        return max(0.0, 1.0 - done / float(data["domain_tokens"] + data["general_tokens"]))
    except (ToolkitError, OSError, ValueError, KeyError, TypeError):
        return 1.0


def _line(
    run: Run,
    goal: Goal,
    seconds: float | None,
    memory: Memory,
    device: Device,
    speeds: ProductSpeeds,
    precision: Precision,
) -> str:
    what = "until the merge is chosen" if goal == "merge" else "until the specialist is trained"
    took = "a time that cannot be told" if seconds is None else f"about {time_words(seconds)}"
    where = "this machine's memory" if device.name == CPU else f"the {device.name} device's memory"
    return (
        f"{run.name}: {took} {what}, {memory.total / 1e9:.1f} GB of {where} "
        f"({device.memory_bytes / 1e9:.0f} GB); trains in {speeds.describe(precision)} on the "
        f"{speeds.device}"
    )


def _shorter(training: float, search: float, amounts: list[StageAmount]) -> str:
    """What would bring a long run down to an hour."""
    tokens = sum(a.tokens for a in amounts)
    room = LONG_SECONDS - search - _ONCE_SECONDS
    ideas = []
    if room > 60.0 and training > room:
        ideas.append(
            f"about {int(tokens * room / training):,} training tokens in place of {tokens:,.0f} "
            "(train: {max_tokens: ...} in the split of the sources)"
        )
    if search > 0.25 * LONG_SECONDS:
        ideas.append("fewer search.num_trials, or smaller validation sets (max_tokens)")
    ideas.append("a GPU, or a smaller model; `toolkit plan` compares devices")
    return f"to finish within an hour: {'; '.join(ideas)}"
