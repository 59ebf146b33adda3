"""Hours and money of a stage on devices, and what the same model cost when it was first trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.devices import Fleet
from toolkit.plan.shape import count_parameters, recomputed, training_flops
from toolkit.plan.token_budget import StageAmount
from toolkit.train.config import TrainSection


@dataclass(frozen=True)
class Work:
    """One stage's work.

    Attributes:
        name: of the stage.
        tokens: targets it learns from.
        positions: tokens it computes, padding included.
        steps: optimizer steps.
        flops: forward and backward; what is computed twice is not counted.
        executed_flops: with it.
        seconds: on this machine, as it was measured; None where it was not.
        domain_tokens, general_tokens: of the targets.
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
        amount: tokens and blocks.
        shape: of the model.
        section: adapters and checkpointing.
        name: of the stage, by default the amount's.
        tokens_per_second: positions a second, as measured here.
        more_seconds: of what is done beside the steps (the watch).
    """
    rank = section.lora.rank if section.lora is not None else None
    again = recomputed(section.gradient_checkpointing)
    length = amount.sequence_length
    seconds = None
    if tokens_per_second is not None:
        seconds = amount.positions / tokens_per_second + more_seconds
    return Work(
        name=name or amount.name,
        tokens=amount.tokens,
        positions=amount.positions,
        steps=amount.steps,
        flops=amount.positions * training_flops(shape, length, lora_rank=rank),
        executed_flops=amount.positions
        * training_flops(shape, length, lora_rank=rank, again=again),
        seconds=seconds,
        domain_tokens=amount.domain_tokens,
        general_tokens=amount.general_tokens,
        sequence_length=length,
    )


@dataclass(frozen=True)
class Bill:
    """Hours and dollars of all stages on some devices."""

    hours: float
    device_hours: float
    dollars: float


def bill(work: Sequence[Work], fleet: Fleet) -> Bill:
    """Time and cost: executed operations over what the devices sustain."""
    seconds = sum(w.executed_flops for w in work) / (fleet.count * fleet.device.sustained)
    hours = seconds / 3600.0
    return Bill(hours, hours * fleet.count, hours * fleet.count * fleet.device.price)


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
    Origin("meta-llama-3-", 15e12, "Llama 3 model card"),
    Origin("llama-3", 15e12, "Llama 3 model cards"),
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
    last = (name or "").rpartition("/")[2].lower()
    found = [origin for origin in ORIGINS if origin.pattern in last]
    return max(found, key=lambda origin: len(origin.pattern), default=None)


def share_of_scratch(work: Sequence[Work], shape: ShapeSection, tokens: float) -> float:
    """FLOPs of the stages over those of the first training, 6 for each parameter and token.

    The article: continued pre-training costs 5 to 20 % of it.
    """
    return sum(w.flops for w in work) / (6.0 * count_parameters(shape).multiplied * tokens)


def devices_needed(bytes_of: Sequence[float], memory: float) -> int | None:
    """The fewest devices on which it fits, of figures for 1, 2, 4, 8, … devices; None for none.

    >>> devices_needed([100.0, 60.0, 40.0], 64.0)
    2
    """
    for power, needed in enumerate(bytes_of):
        if needed <= memory and math.isfinite(needed):
            return int(2**power)
    return None
