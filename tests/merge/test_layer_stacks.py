"""Names of tensors say what a model is made of; no list of architectures does."""

from __future__ import annotations

import pytest

from toolkit.checkpoint.tensor_names import is_buffer
from toolkit.merge.layer_stacks import Layout, ModelView, is_before_layers


def names(*patterns: str, layers: int = 2, experts: int = 3) -> list[str]:
    return [
        pattern.format(layer=layer, expert=expert)
        for pattern in patterns
        for layer in range(layers if "{layer}" in pattern else 1)
        for expert in range(experts if "{expert}" in pattern else 1)
    ]


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("model.layers.{layer}.mlp.up_proj.weight", "model.layers"),
        ("transformer.h.{layer}.attn.c_attn.bias", "transformer.h"),
        ("h.{layer}.ln_1.weight", "h"),
        ("backbone.blocks.{layer}.mixer.A_log", "backbone.blocks"),
        ("model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight", "model.layers"),
        ("encoder.block.{layer}.layer.0.SelfAttention.q.weight", "encoder.block"),
    ],
)
def test_layers_are_found_in_any_architecture(name: str, stack: str):
    every = names(name, "lm_head.weight")
    layout = Layout(every)
    assert layout.stacks == {stack: 2}
    assert layout.find(every[-2]) == (stack, 1)
    assert layout.find("lm_head.weight") is None
    assert layout.renumber(every[-2], 5) == every[-2].replace(f"{stack}.1.", f"{stack}.5.")


def test_numbers_with_gaps_are_no_layers():
    layout = Layout(["projector.0.weight", "projector.2.weight", *names("layers.{layer}.w")])
    assert layout.stacks == {"layers": 2}
    assert layout.find("projector.2.weight") is None


def test_the_config_says_which_number_is_the_layer():
    every = [f"visual.stages.{s}.blocks.{b}.w" for s in range(2) for b in range(4)]
    assert Layout(every).stacks == {"visual.stages": 2}
    assert Layout(every, {4}).stacks == {"visual.stages.0.blocks": 4, "visual.stages.1.blocks": 4}
    text = names("model.layers.{layer}.w", layers=3)
    layout = Layout([*every, *text], {3})
    assert layout.main == ["model.layers"]


def test_before_and_after():
    before = ("model.embed_tokens.weight", "transformer.wte.weight", "embeddings.word.weight")
    after = ("embed_out.weight", "lm_head.weight", "model.norm.weight", "transformer.ln_f.bias")
    assert [is_before_layers(name) for name in (*before, *after)] == [True] * 3 + [False] * 4


def test_buffers_are_told_from_biases():
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq", (32,))
    assert is_buffer("gpt_neox.layers.0.attention.bias", (1, 1, 64, 64))
    assert not is_buffer("bert.encoder.layer.0.attention.bias", (64,))
    assert not is_buffer("model.layers.0.self_attn.q_proj.bias", (1, 1, 2, 2))


def test_what_stands_for_a_missing_head():
    shapes = {"model.embed_tokens.weight": (8, 4), "model.layers.0.lm_head.weight": (8, 4)}
    tied = ModelView("m", shapes, {"text_config": {"tie_word_embeddings": True}})
    assert tied.tied_name("lm_head.weight", (8, 4)) == "model.embed_tokens.weight"
    assert tied.tied_name("lm_head.weight", (9, 4)) is None
    assert tied.tied_name("model.norm.weight", (8, 4)) is None
    untied = ModelView("m", shapes, {"tie_word_embeddings": False})
    assert untied.tied_name("lm_head.weight", (8, 4)) is None
