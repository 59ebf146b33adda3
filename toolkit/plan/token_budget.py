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
        name, role: name and role of the source.
        tokens: tokens that the recipe takes of it, without repeated documents; None where nothing
            was seen.
        available: tokens that it could supply without the recipe's `max_tokens`; likewise.
        at_least: whether only a part was seen, and nothing tells how large a part.
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
        name: name of the stage.
        sequence_length: length of a block.
        domain_tokens, general_tokens: targets, all epochs together.
        blocks: number of blocks of all epochs.
        steps: optimizer steps.
    """

    name: str
    sequence_length: int
    domain_tokens: float
    general_tokens: float
    blocks: int
    steps: int

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
        name, role: name and role of the source.
        train_bytes: bytes of its training text, estimated for all of it; None where nothing was
            seen.
        tokens_per_byte: ratio of its text under the tokenizer.
        sizes: tokens of sampled documents, for what packing leaves empty.
        sequence_length, packing: settings of the recipe.
        max_tokens: limit of the training split.
        declared: number of tokens that the recipe says it holds.
        is_whole: whether everything was read.
        is_known_share: whether it is known how large a part was read.
    """
    tokens: float | None
    if declared is not None:
        tokens, origin = float(declared), "declared"
    elif train_bytes is None:
        tokens, origin = None, "unknown"
    else:
        tokens = train_bytes * tokens_per_byte
        origin = "counted" if is_whole else "estimated"
    available = tokens
    # Of a source that was not seen the limit is taken for what it holds: people set one where
    # there is more.
    if max_tokens is not None and (tokens is None or tokens >= max_tokens):
        tokens = float(max_tokens)
    fill_fraction = 1.0
    if packing == "best_fit" and len(sizes):
        # The token between documents is a target as well.
        num_targets = np.array(sizes, dtype=np.int64) + 1
        num_blocks = len(pack(num_targets, sequence_length, packing))
        fill_fraction = float(num_targets.sum() / (num_blocks * sequence_length))
    at_least = declared is None and not (is_whole or is_known_share)
    return SourceAmount(name, role, tokens, available, at_least, fill_fraction, origin)


def stage_amounts(
    data: DataSection, train: TrainSection, sources: Mapping[str, SourceAmount]
) -> list[StageAmount]:
    """Tokens, blocks and steps of each stage; empty where a domain source is unknown.

    Raises:
        ConfigError: a stage or the replay needs more text than a source holds, counting the
            repeats that the recipe allows.
    """
    if data.stages:
        return [_curriculum_stage(data, train, sources, n) for n in range(len(data.stages))]
    domain_sources = [source for source in sources.values() if source.role == "domain"]
    general_sources = [source for source in sources.values() if source.role == "general"]
    if any(source.tokens is None for source in domain_sources):
        return []
    weights = {name: section.weight or 1.0 for name, section in data.sources.items()}
    domain_tokens = sum((s.tokens or 0.0) * weights[s.name] for s in domain_sources)
    replay_tokens = domain_tokens * data.replay_fraction / (1.0 - data.replay_fraction)
    general_supply = sum(s.tokens or 0.0 for s in general_sources)
    is_known = all(s.tokens is not None and not s.at_least for s in general_sources)
    # A twentieth is left to the error of the estimate; the data stage has the last word.
    is_short = general_supply * data.max_repeats < 0.95 * replay_tokens
    if replay_tokens > 0.0 and is_known and is_short:
        raise ConfigError(
            f"data.replay_fraction: {data.replay_fraction} of the training tokens needs about "
            f"{replay_tokens:,.0f} tokens of general text, but the sources hold about "
            f"{general_supply:,.0f}, to be repeated {data.max_repeats:g} times at most; add a "
            "general source, lower the share, or raise data.max_repeats."
        )
    num_positions = sum((s.tokens or 0.0) * weights[s.name] / s.fill for s in domain_sources)
    mean_fill = (
        sum(s.fill for s in general_sources) / len(general_sources) if general_sources else 1.0
    )
    num_positions += replay_tokens / mean_fill
    return [
        _stage_amount(
            "train", train, data.sequence_length, domain_tokens, replay_tokens, num_positions
        )
    ]


def _curriculum_stage(
    data: DataSection, train: TrainSection, sources: Mapping[str, SourceAmount], number: int
) -> StageAmount:
    stage = data.stages[number]
    all_shares = sum(stage.mixture.values())
    tokens_by_role = {"domain": 0.0, "general": 0.0}
    num_positions = 0.0
    for name, share in stage.mixture.items():
        source = sources[name]
        source_tokens = stage.tokens * share / all_shares
        tokens_by_role[source.role] += source_tokens
        num_positions += source_tokens / source.fill
        if source.tokens is None or source.at_least or source_tokens == 0.0:
            continue
        # A twentieth is left to the error of the estimate here as well.
        if source_tokens > 1.05 * source.tokens * data.max_repeats:
            num_repeats = source_tokens / max(1.0, source.tokens)
            raise ConfigError(
                f"data.stages.{number}.mixture.{name}: {source_tokens:,.0f} tokens would repeat "
                f"its about {source.tokens:,.0f} {num_repeats:.1f} times; lower the fraction or "
                f"the stage's tokens, add text, or raise data.max_repeats ({data.max_repeats:g})."
            )
    sequence_length = stage.sequence_length or data.sequence_length
    domain_tokens, general_tokens = tokens_by_role["domain"], tokens_by_role["general"]
    return _stage_amount(
        stage.name, train, sequence_length, domain_tokens, general_tokens, num_positions
    )


def _stage_amount(
    name: str,
    train: TrainSection,
    sequence_length: int,
    domain_tokens: float,
    general_tokens: float,
    positions: float,
) -> StageAmount:
    """One epoch's tokens and filled positions as a stage of all epochs."""
    epochs = train.epochs
    num_blocks = max(1, round(positions / sequence_length))
    # The last step of an epoch may have fewer blocks; it is a step all the same.
    num_steps = -(-num_blocks // train.global_batch_size)
    return StageAmount(
        name,
        sequence_length,
        domain_tokens * epochs,
        general_tokens * epochs,
        num_blocks * epochs,
        num_steps * epochs,
    )
