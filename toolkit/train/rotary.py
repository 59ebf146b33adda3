"""Positions that change as training goes: the base of rotary embeddings, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from toolkit.errors import ConfigError
from toolkit.train.config import StageTrainingSection


class Reach(NamedTuple):
    """How far a model's positions go: the rotary base, and the longest sequence; None where
    they are as the model has them."""

    rope_theta: float | None = None
    max_position_embeddings: int | None = None


def reaches(
    names: Sequence[str], lengths: Sequence[int], stages: Mapping[str, StageTrainingSection]
) -> list[Reach]:
    """What holds in each stage: what it says itself, or a stage before it said.

    Args:
        names: of the stages in their order.
        lengths: of their blocks, in tokens.
        stages: `train.stages`.

    >>> long = {"b": StageTrainingSection(rope_theta=1e6)}
    >>> [tuple(reach) for reach in reaches(["a", "b", "c"], [4096, 16384, 4096], long)]
    [(None, None), (1000000.0, 16384), (1000000.0, 16384)]
    """
    found, here = [], Reach()
    for name, length in zip(names, lengths, strict=True):
        own = stages.get(name, StageTrainingSection())
        if own.rope_theta is not None:
            here = Reach(own.rope_theta, max(length, here.max_position_embeddings or 0))
        if own.max_position_embeddings is not None:
            here = here._replace(max_position_embeddings=own.max_position_embeddings)
        found.append(here)
    return found


def reach_of(model: Any) -> Reach:
    """What a model has: nothing where its positions are not rotary with one base."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None)
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    return Reach(theta, getattr(config, "max_position_embeddings", None))


@torch.no_grad()
def set_reach(model: Any, reach: Reach, given: Reach) -> None:
    """Set a model's positions, in its configuration and in what was computed from it.

    Args:
        model: a causal language model.
        reach: what shall hold; a smaller number of positions than given is passed over.
        given: what the model was loaded with.

    Raises:
        ConfigError: the model has no rotary base, or several.
    """
    config = model.config.get_text_config()
    positions = max(given.max_position_embeddings or 0, reach.max_position_embeddings or 0)
    if given.rope_theta is None:
        if reach.rope_theta is not None or positions > (given.max_position_embeddings or 0):
            raise ConfigError(
                f"train.stages: a model of type {config.model_type} has no single rotary base, so "
                "its positions cannot be changed; drop rope_theta and max_position_embeddings."
            )
        return
    if given.max_position_embeddings is not None:
        config.max_position_embeddings = positions
    config.rope_parameters["rope_theta"] = reach.rope_theta or given.rope_theta
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        if "inv_freq" not in own:
            continue
        fresh = type(module)(module.config)
        for name, buffer in own.items():
            buffer.copy_(fresh.get_buffer(name))
