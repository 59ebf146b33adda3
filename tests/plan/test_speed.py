"""Timed steps are the trainer's own."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.shapes import ROUND
from toolkit.plan import speed
from toolkit.train.config import TrainSection
from toolkit.train.model import NextTokenLoss


def tiny() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("settings", "fused", "checkpointed"),
    [
        ({"precision": "bf16"}, True, False),  # selective: fused blocks need no more
        ({"gradient_checkpointing": "full", "precision": "bf16"}, True, True),
        ({"precision": "fp32"}, True, False),
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
    model = tiny()
    found = speed.time_steps(
        model, TrainSection.model_validate(settings), ROUND, range(1, 60), 16, seconds=0.0
    )
    assert found.tokens_per_second is not None
    assert 0.0 < found.share <= 1.0
    assert seen[0].fused is fused
    assert model.base_model.is_gradient_checkpointing is checkpointed
    assert ("forward" in vars(model.base_model.layers[0].mlp)) is fused


def test_other_work_shows_in_the_share_of_the_processors(monkeypatch: pytest.MonkeyPatch):
    real = time.process_time
    begun = real()
    monkeypatch.setattr(speed.time, "process_time", lambda: begun + (real() - begun) / 10.0)
    found = speed.time_steps(tiny(), TrainSection(), ROUND, range(1, 60), 16, seconds=0.1)
    assert found.share < 0.2
