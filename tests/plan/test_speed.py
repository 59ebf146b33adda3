"""Timed steps are the trainer's own."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.plan.shapes import ROUND
from toolkit.plan import speed
from toolkit.train.config import TrainSection
from toolkit.train.model import NextTokenLoss


@pytest.mark.parametrize(
    ("settings", "fused", "checkpointed"),
    [
        ({}, True, False),  # selective: fused blocks need no more
        ({"gradient_checkpointing": "full"}, True, True),
        ({"precision": "fp32"}, False, True),
        ({"lora": {"rank": 2}}, False, True),
    ],
)
def test_steps_go_through_fused_blocks_where_training_does(
    settings: dict[str, Any], fused: bool, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
):
    seen: list[NextTokenLoss] = []

    class Seen(NextTokenLoss):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            seen.append(self)

    monkeypatch.setattr(speed, "NextTokenLoss", Seen)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    found = speed.time_steps(
        model, TrainSection.model_validate(settings), ROUND, range(1, 60), 16, seconds=0.0
    )
    assert found.tokens_per_second is not None
    assert seen[0].fused is fused
    assert model.base_model.is_gradient_checkpointing is checkpointed
    assert ("forward" in vars(model.base_model.layers[0].mlp)) is fused
