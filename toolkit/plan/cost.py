"""Work of the stages (tokens, operations, seconds), and hours and money of it on devices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.checkpoint.config import ShapeSection
from toolkit.data.config import DataSection
from toolkit.plan.devices import CPU, Fleet
from toolkit.plan.evidence import Looked
from toolkit.plan.model import MeasuredModel
from toolkit.plan.shape import count_parameters, recomputed, training_flops
from toolkit.plan.token_budget import StageAmount
from toolkit.recipe.schema import Recipe
from toolkit.train.config import TrainSection

_READINGS_PER_WRITING = 8.0
"""Tokens that are read in the time in which one is written, 32 conversations side by side: SmolLM2
on 2 cores wrote 104 a second and read 670 (dev/LOG.md), and loading it is a part of that."""

SEARCH = "merge search, at most"
"""Name of the search among the stages: most candidates are dropped before they are read in full."""


@dataclass(frozen=True)
class Work:
    """One stage's work.

    Attributes:
        name: stage, as the table names it.
        tokens: targets it learns from.
        positions: tokens it computes, padding included.
        steps: optimizer steps.
        flops: forward and backward; what is computed twice is not counted.
        executed_flops: the same with what is computed twice.
        seconds: on this machine, as it was measured; None where it was not.
        domain_tokens, general_tokens: targets by role.
        sequence_length: length of a block.
    """

    name: str
    tokens: float
    positions: float
    steps: int
    flops: float
    executed_flops: float
    seconds: float | None = None
    domain_tokens: float = 0.0
    general_tokens: float = 0.0
    sequence_length: int = 0


def stage_work(
    amount: StageAmount,
    shape: ShapeSection,
    section: TrainSection,
    *,
    name: str | None = None,
    tokens_per_second: float | None = None,
    more_seconds: float = 0.0,
) -> Work:
    """FLOPs of a training stage.

    Args:
        amount: tokens and blocks of the stage.
        shape: measures of the model.
        section: adapters and checkpointing of the recipe.
        name: name in the table, by default the amount's.
        tokens_per_second: positions per second in training, as measured here.
        more_seconds: time for what is done beside the steps (the watch, conversations written).
    """
    lora_rank = section.lora.rank if section.lora is not None else None
    again = recomputed(section.gradient_checkpointing)
    length, positions = amount.sequence_length, amount.positions
    if section.self_distillation is not None:  # conversations beside the blocks of every step
        positions += amount.steps * section.self_distillation.tokens_per_step
    seconds = None
    if tokens_per_second is not None:
        seconds = positions / tokens_per_second + more_seconds
    return Work(
        name=name or amount.name,
        tokens=amount.tokens,
        positions=amount.positions,
        steps=amount.steps,
        flops=positions * training_flops(shape, length, lora_rank=lora_rank),
        executed_flops=positions * training_flops(shape, length, lora_rank=lora_rank, again=again),
        seconds=seconds,
        domain_tokens=amount.domain_tokens,
        general_tokens=amount.general_tokens,
        sequence_length=length,
    )


def training_work(
    recipe: Recipe,
    amounts: Sequence[StageAmount],
    looked: Looked,
    shape: ShapeSection | None,
    measured: MeasuredModel,
) -> list[Work]:
    """Training stages, and the search; the search alone where nothing is trained."""
    if shape is None:
        return []
    if not recipe.trains:
        return _search_work(recipe, looked, shape, measured)
    if not amounts:
        return []
    watch = recipe.train.forgetting_monitor
    tokens_per_second = measured.reading_tokens_per_second
    # Before the first step and after the last one, too.
    num_looks = watch.evaluations + 2 if watch.evaluations else 0
    # Two roles: domain and general.
    watched_tokens = num_looks * 2 * watch.tokens_per_role
    if (own := recipe.train.self_distillation) is not None:
        watched_tokens += round(_READINGS_PER_WRITING * own.num_tokens)
    more_seconds = watched_tokens / tokens_per_second if tokens_per_second else 0.0
    training_stages = [
        stage_work(
            amount,
            shape,
            recipe.train,
            name=amount.name if len(amounts) > 1 else "cpt",
            tokens_per_second=measured.training_tokens_per_second,
            more_seconds=more_seconds / len(amounts),
        )
        for amount in amounts
    ]
    return [*training_stages, *_search_work(recipe, looked, shape, measured)]


def _search_work(
    recipe: Recipe, looked: Looked, shape: ShapeSection, measured: MeasuredModel
) -> list[Work]:
    """The search as one stage; none where nothing was seen of the validation sets."""
    evaluation_tokens = _evaluation_tokens(recipe.data, looked)
    if evaluation_tokens == 0.0:
        return []
    tokens_per_second = measured.reading_tokens_per_second
    scored_tokens = (recipe.search.num_trials + 3) * evaluation_tokens
    scoring_flops = scored_tokens * (training_flops(shape, recipe.evaluate.window_tokens) / 3.0)
    scoring_seconds = scored_tokens / tokens_per_second if tokens_per_second else None
    return [Work(SEARCH, 0.0, scored_tokens, 0, scoring_flops, scoring_flops, scoring_seconds)]


def _evaluation_tokens(data: DataSection, looked: Looked) -> float:
    """Tokens of the validation sets, as far as they are known."""
    total_tokens = 0.0
    for name, sample in looked.samples.items():
        rule = data.sources[name].split.get("validation")
        if rule is None:
            continue
        seen_tokens = sample.split_bytes["validation"] * looked.tokens_per_byte[sample.role]
        source_tokens = seen_tokens / (sample.seen_fraction or 1.0)
        total_tokens += min(source_tokens, rule.max_tokens or source_tokens)
    return total_tokens


@dataclass(frozen=True)
class Bill:
    """Time and money of all stages on some devices.

    Attributes:
        devices: devices as they are named.
        fits: whether the recipe's own way of training fits them.
        hours: time of all stages; None where it is not known.
        dollars: price of that time; None where the time or the price is not known.
        price_per_hour: dollars for one device.
        utilization: share of the peak that training reaches.
        is_measured: whether the speed was measured here.
    """

    devices: str
    fits: bool
    hours: float | None
    dollars: float | None
    price_per_hour: float
    utilization: float
    is_measured: bool


def bill(work: Sequence[Work], fleet: Fleet, *, fits: bool = True) -> Bill:
    """Time and cost: executed operations over what the devices sustain."""
    device = fleet.device
    seconds = sum(stage.executed_flops for stage in work) / (fleet.count * device.sustained)
    timed_seconds = [stage.seconds for stage in work if stage.seconds is not None]
    # Only where every stage was timed: half measured and half computed would be neither.
    if device.name == CPU and work and len(timed_seconds) == len(work):
        seconds = sum(timed_seconds)  # timed here, so nothing is assumed
    hours = seconds / 3600.0
    is_known = math.isfinite(hours)
    return Bill(
        devices=fleet.text,
        fits=fits,
        hours=hours if is_known else None,
        dollars=hours * fleet.count * device.price if is_known and device.price else None,
        price_per_hour=device.price,
        utilization=device.utilization,
        is_measured=device.is_measured,
    )


@dataclass(frozen=True)
class Origin:
    """How many tokens a published model was first trained on."""

    pattern: str
    tokens: float
    source: str


ORIGINS: tuple[Origin, ...] = (
    # Longest names first. Figures from memory of the named publications: check before quoting.
    Origin("smollm2-135m", 2e12, "SmolLM2 model card"),
    Origin("smollm2-360m", 4e12, "SmolLM2 model card"),
    Origin("smollm2-1.7b", 11e12, "SmolLM2 model card"),
    Origin("smollm3-3b", 11.2e12, "SmolLM3 model card"),
    Origin("llama-3", 15e12, "Llama 3 model card"),
    Origin("llama-3.1", 15e12, "Llama 3.1 model card"),
    Origin("llama-3.2-1b", 9e12, "Llama 3.2 model card, up to"),
    Origin("llama-3.2-3b", 9e12, "Llama 3.2 model card, up to"),
    Origin("llama-3.3", 15e12, "Llama 3.3 model card"),
    Origin("llama-2", 2e12, "Touvron et al. 2023"),
    Origin("qwen3", 36e12, "Qwen3 technical report"),
    Origin("qwen2.5", 18e12, "Qwen2.5 technical report"),
    Origin("gemma-2-27b", 13e12, "Gemma 2 technical report"),
    Origin("gemma-2-9b", 8e12, "Gemma 2 technical report"),
    Origin("gemma-2-2b", 2e12, "Gemma 2 technical report"),
    Origin("olmo-2-1124-7b", 4e12, "OLMo 2 technical report"),
    Origin("olmo-2-1124-13b", 5e12, "OLMo 2 technical report"),
    Origin("deepseek-v3", 14.8e12, "DeepSeek-V3 technical report"),
    Origin("kimi-k2", 15.5e12, "Kimi K2 technical report"),
    Origin("tinyllama", 3e12, "Zhang et al. 2024"),
    Origin("pythia", 3e11, "Biderman et al. 2023"),
)


def find_origin(name: str | None) -> Origin | None:
    """What is known of a model's first training, by its public name.

    >>> find_origin("HuggingFaceTB/SmolLM2-135M-Instruct").tokens
    2000000000000.0
    """
    last_part = (name or "").rpartition("/")[2].lower()
    # What a number follows on is a later version, which was trained on other text.
    matching_origins = [
        origin
        for origin in ORIGINS
        if re.search(rf"{re.escape(origin.pattern)}(?![.\d])", last_part)
    ]
    return max(matching_origins, key=lambda origin: len(origin.pattern), default=None)


@dataclass(frozen=True)
class FromScratch:
    """What all stages cost beside the model's first training.

    Attributes:
        tokens: tokens of the first training.
        source: where that number comes from.
        share: FLOPs of the stages over those of the first training.
        article: share that the article on continued pre-training names.
    """

    tokens: float
    source: str
    share: float
    article: str = "5 to 20 %"


def compare_from_scratch(
    origin: Origin | None,
    work: Sequence[Work],
    shape: ShapeSection | None,
    declared_tokens: float | None,
) -> FromScratch | None:
    """The stages beside the first training, where its tokens are declared or known."""
    if shape is None or not work:
        return None
    if declared_tokens is not None:
        share = share_of_scratch(work, shape, declared_tokens)
        return FromScratch(declared_tokens, "given", share)
    if origin is None:
        return None
    share = share_of_scratch(work, shape, origin.tokens)
    return FromScratch(origin.tokens, f"{origin.source}, from memory: check", share)


def share_of_scratch(work: Sequence[Work], shape: ShapeSection, tokens: float) -> float:
    """FLOPs of the stages over those of the first training, 6 for each parameter and token."""
    stage_flops = sum(stage.flops for stage in work)
    return stage_flops / (6.0 * count_parameters(shape).multiplied * tokens)
