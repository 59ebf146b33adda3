"""Positions that change as training goes: the base of rotary embeddings, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from toolkit.data.blocks import StageBlocks
from toolkit.errors import ConfigError
from toolkit.train.config import StageTrainingSection


class RotarySettings(NamedTuple):
    """Rotary base and longest sequence; None where they are as the model has them."""

    rope_theta: float | None = None
    max_position_embeddings: int | None = None


class RotaryByStage:
    """The positions of a model, set anew where a stage of training begins.

    Args:
        model: a causal language model, with the positions that it was loaded with.
        stages: stages of the data.
        sections: `train.stages`; where it is empty, positions are never touched.
    """

    def __init__(
        self,
        model: Any,
        stages: Sequence[StageBlocks],
        sections: Mapping[str, StageTrainingSection],
    ) -> None:
        self._model = model
        self._original = self._current = read_rotary(model)
        self._by_stage = rotary_by_stage(stages, sections) if sections else None

    def enter_stage(self, number: int) -> None:
        """Set what holds in a stage.

        Raises:
            ConfigError: the model has no rotary base, or several.
        """
        # By comparison with what holds, not by the stage before: a resumed run begins amid any
        # stage with the positions that it was loaded with.
        if self._by_stage is not None and self._current != self._by_stage[number]:
            self._current = self._by_stage[number]
            set_rotary(self._model, self._current, self._original)


def rotary_by_stage(
    stages: Sequence[StageBlocks], sections: Mapping[str, StageTrainingSection]
) -> list[RotarySettings]:
    """What holds in each stage: what it says itself, or a stage before it said.

    Args:
        stages: stages of the data, in their order.
        sections: `train.stages`.
    """
    # What a stage says holds for those after it, until one says otherwise.
    settings_by_stage, current = [], RotarySettings()
    for stage in stages:
        section = sections.get(stage.name, StageTrainingSection())
        if section.rope_theta is not None:
            longest = max(stage.sequence_length, current.max_position_embeddings or 0)
            current = RotarySettings(section.rope_theta, longest)
        if section.max_position_embeddings is not None:
            current = current._replace(max_position_embeddings=section.max_position_embeddings)
        settings_by_stage.append(current)
    return settings_by_stage


def read_rotary(model: Any) -> RotarySettings:
    """What a model has: nothing where its positions are not rotary with one base."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None)
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    return RotarySettings(theta, getattr(config, "max_position_embeddings", None))


@torch.no_grad()
def set_rotary(model: Any, wanted: RotarySettings, original: RotarySettings) -> None:
    """Set a model's positions, in its configuration and in what was computed from it.

    Args:
        model: a causal language model.
        wanted: what shall hold; a smaller number of positions than the original is passed over.
        original: what the model was loaded with.

    Raises:
        ConfigError: the model has no rotary base, or several.
    """
    config = model.config.get_text_config()
    num_positions = max(original.max_position_embeddings or 0, wanted.max_position_embeddings or 0)
    if original.rope_theta is None:
        if wanted.rope_theta is not None or num_positions > (original.max_position_embeddings or 0):
            raise ConfigError(
                f"train.stages: a model of type {config.model_type} has no single rotary base, so "
                "its positions cannot be changed; drop rope_theta and max_position_embeddings."
            )
        return
    if original.max_position_embeddings is not None:
        config.max_position_embeddings = num_positions
    config.rope_parameters["rope_theta"] = wanted.rope_theta or original.rope_theta
    # Frequencies are computed when a module is made and are in no file: the configuration alone
    # would change nothing in a model that stands.
    for module in model.modules():
        own_buffers = dict(module.named_buffers(recurse=False))
        if "inv_freq" not in own_buffers:
            continue
        # The module itself knows how its frequencies follow from the configuration.
        fresh_module = type(module)(module.config)
        for name, buffer in own_buffers.items():
            buffer.copy_(fresh_module.get_buffer(name))
