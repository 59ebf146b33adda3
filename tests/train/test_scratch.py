"""Models from scratch: their shape, and weights that the seed and their names decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.checkpoint.config import ShapeSection
from toolkit.errors import ConfigError
from toolkit.pipeline.models import ensure_cpt, ensure_general
from toolkit.recipe.model import ModelSection, shape_of
from toolkit.stage import content_hash
from toolkit.train.scratch import random_llama

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def test_weights_come_from_seed_and_name(tiny_tokenizer: Any):
    before = torch.random.get_rng_state()
    one, same, other = (
        random_llama(ShapeSection(**SHAPE), seed, tiny_tokenizer).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    deeper = random_llama(
        ShapeSection(**{**SHAPE, "num_hidden_layers": 3}), 1, tiny_tokenizer
    ).state_dict()
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(one[name], same[name])
    assert torch.equal(one[name], deeper[name])  # whatever else the model has
    assert not torch.equal(one[name], other[name])
    assert torch.equal(one["model.norm.weight"], torch.ones(16))
    # 320 * 16 draws with spread 0.02; what writes into the residual stream is half, for 2 layers
    assert float(one["model.embed_tokens.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(one["model.layers.0.mlp.down_proj.weight"].std()) == pytest.approx(0.01, rel=0.1)


def test_heads_must_divide_the_width(tiny_tokenizer: Any):
    with pytest.raises(ConfigError, match="3 heads with 3 of keys and values do not divide"):
        random_llama(ShapeSection(**{**SHAPE, "num_attention_heads": 3}), 0, tiny_tokenizer)


@pytest.mark.parametrize(
    ("scratch", "message"),
    [
        ({"shape": {**SHAPE, "num_experts": 4, "num_experts_per_tok": 2}}, "is dense"),
        ({"tokenizer": {"scratch": {"shape": SHAPE, "tokenizer": {"path": "x"}}}}, "that exists"),
    ],
)
def test_what_a_recipe_may_not_say(scratch: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ModelSection.model_validate(
            {"scratch": {"shape": SHAPE, "tokenizer": {"path": "model"}, **scratch}}
        )


def test_a_recipe_pre_trains_its_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Path]
):
    make_project(tmp_path, make_model)
    monkeypatch.chdir(tmp_path)
    model = {"scratch": {"shape": SHAPE, "tokenizer": {"path": "model"}}}
    run = open_run(tmp_path, {"model": model})
    assert shape_of(run.recipe.model) == ShapeSection(**SHAPE)
    general = ensure_general(run)
    assert general == Path("runs/tiny/general")
    made = content_hash(general)
    loaded = AutoModelForCausalLM.from_pretrained(general, dtype=torch.float32)
    assert loaded.config.hidden_size == 16
    losses = ensure_cpt(run)
    assert (losses / "model.safetensors").is_file()
    assert ensure_general(open_run(tmp_path, {"model": model})) == general
    assert content_hash(general) == made
    small = {"scratch": {"shape": {**SHAPE, "vocab_size": 300}, "tokenizer": {"path": "model"}}}
    with pytest.raises(ConfigError, match="300 is too small for the tokenizer's 320 tokens"):
        ensure_general(open_run(tmp_path, {"model": small}))
