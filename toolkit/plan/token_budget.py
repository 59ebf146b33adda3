"""How much a recipe trains on: tokens, blocks and steps of every stage, from its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.data.config import DataSection
from toolkit.data.packing import pack
from toolkit.errors import ConfigError
from toolkit.train.config import TrainSection

ASSUMED_TOKENS_PER_BYTE = 1.0 / 4.3
"""English text under a tokenizer of 50,000 tokens or more; used where there is no tokenizer."""


@dataclass(frozen=True)
class SourceAmount:
    """Training text of one source.

    Attributes:
        name, role: of the source.
        tokens: that the recipe takes of it, without repeated documents; None where nothing was
            seen.
        available: that it could supply without the recipe's `max_tokens`; likewise.
        at_least: only a part was seen, and nothing tells how large a part.
        fill: share of a block's positions that have a target, after packing.
        origin: `counted`, `estimated`, `declared` or `unknown`.
    """

    name: str
    role: str
    tokens: float | None
    available: float | None
    at_least: bool
    fill: float
    origin: str


@dataclass(frozen=True)
class StageAmount:
    """One stage of training.

    Attributes:
        name: of the stage.
        sequence_length: length of a block.
        domain_tokens, general_tokens: targets, all epochs together.
        blocks: of all epochs.
        steps: optimizer steps.
        micro_batches: forward passes of one process.
    """

    name: str
    sequence_length: int
    domain_tokens: float
    general_tokens: float
    blocks: int
    steps: int
    micro_batches: int

    @property
    def tokens(self) -> float:
        return self.domain_tokens + self.general_tokens

    @property
    def positions(self) -> int:
        """Tokens that are computed, padding included."""
        return self.blocks * self.sequence_length


def source_amount(
    name: str,
    role: str,
    *,
    train_bytes: float | None,
    tokens_per_byte: float,
    sizes: Sequence[int],
    sequence_length: int,
    packing: str,
    max_tokens: int | None = None,
    declared: int | None = None,
    is_whole: bool = True,
    is_known_share: bool = True,
) -> SourceAmount:
    """The amount of one source.

    Args:
        name, role: of the source.
        train_bytes: of its training text, estimated for all of it; None where nothing was seen.
        tokens_per_byte: of its text.
        sizes: tokens of sampled documents, for what packing leaves empty.
        sequence_length, packing: as in the recipe.
        max_tokens: of the training split.
        declared: what the recipe says it holds.
        is_whole: everything was read.
        is_known_share: or it is known how large a part was.
    """
    tokens: float | None
    if declared is not None:
        tokens, origin = float(declared), "declared"
    elif train_bytes is None:
        tokens, origin = None, "unknown"
    else:
        tokens = train_bytes * tokens_per_byte
        origin = "counted" if is_whole else "estimated"
    at_least = declared is None and not (is_whole or is_known_share)
    available = tokens
    if max_tokens is not None and (tokens is None or tokens >= max_tokens):
        tokens = float(max_tokens)
    fill = 1.0
    if packing == "best_fit" and len(sizes):
        targets = np.array(sizes, dtype=np.int64) + 1
        fill = float(
            targets.sum() / (len(pack(targets, sequence_length, packing)) * sequence_length)
        )
    return SourceAmount(name, role, tokens, available, at_least, fill, origin)


def stage_amounts(
    data: DataSection,
    train: TrainSection,
    sources: Mapping[str, SourceAmount],
    *,
    processes: int = 1,
) -> list[StageAmount]:
    """Tokens, blocks and steps of each stage; empty where a domain source is unknown.

    Raises:
        ConfigError: a stage or the replay needs more text than a source holds, counting the
            repeats that the recipe allows.
    """
    if data.stages:
        return [_curriculum(data, train, sources, n, processes) for n in range(len(data.stages))]
    domain = [s for s in sources.values() if s.role == "domain"]
    general = [s for s in sources.values() if s.role == "general"]
    if any(s.tokens is None for s in domain):
        return []
    weights = {name: section.weight or 1.0 for name, section in data.sources.items()}
    learned = sum((s.tokens or 0.0) * weights[s.name] for s in domain)
    replayed = learned * data.replay_fraction / (1.0 - data.replay_fraction)
    supply = sum(s.tokens or 0.0 for s in general)
    is_known = all(s.tokens is not None and not s.at_least for s in general)
    if replayed > 0.0 and is_known and supply * data.max_repeats < 0.95 * replayed:
        raise ConfigError(
            f"data.replay_fraction: {data.replay_fraction} of the training tokens needs about "
            f"{replayed:,.0f} tokens of general text, but the sources hold about {supply:,.0f}, to "
            f"be repeated {data.max_repeats:g} times at most; add a general source, lower the "
            "share, or raise data.max_repeats."
        )
    blocks = sum((s.tokens or 0.0) * weights[s.name] / s.fill for s in domain)
    blocks += replayed / _mean_fill(general)
    return [_stage("train", train, data.sequence_length, learned, replayed, blocks, processes)]


def _curriculum(
    data: DataSection,
    train: TrainSection,
    sources: Mapping[str, SourceAmount],
    number: int,
    processes: int,
) -> StageAmount:
    stage = data.stages[number]
    total = sum(stage.mixture.values())
    tokens = {"domain": 0.0, "general": 0.0}
    filled = 0.0
    for name, share in stage.mixture.items():
        source = sources[name]
        wanted = stage.tokens * share / total
        tokens[source.role] += wanted
        filled += wanted / source.fill
        if source.tokens is None or source.at_least or wanted == 0.0:
            continue
        if wanted > 1.05 * source.tokens * data.max_repeats:
            raise ConfigError(
                f"data.stages.{number}.mixture.{name}: {wanted:,.0f} tokens would repeat its about "
                f"{source.tokens:,.0f} {wanted / max(1.0, source.tokens):.1f} times; lower the "
                f"share or the stage's tokens, add text, or raise data.max_repeats "
                f"({data.max_repeats:g})."
            )
    length = stage.sequence_length or data.sequence_length
    return _stage(stage.name, train, length, tokens["domain"], tokens["general"], filled, processes)


def _stage(
    name: str,
    train: TrainSection,
    length: int,
    domain: float,
    general: float,
    filled: float,
    processes: int,
) -> StageAmount:
    blocks = max(1, round(filled / length))
    steps = -(-blocks // train.global_batch_size)
    per_step = -(-train.global_batch_size // processes)
    micro = steps * -(-per_step // train.micro_batch_size)
    times = train.epochs
    return StageAmount(
        name, length, domain * times, general * times, blocks * times, steps * times, micro * times
    )


def _mean_fill(sources: Sequence[SourceAmount]) -> float:
    return sum(s.fill for s in sources) / len(sources) if sources else 1.0
