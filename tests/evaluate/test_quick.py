"""Models scored with fewer passes over memory compute what they computed before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from toolkit.evaluate.head import final_hidden, picked_log_probabilities
from toolkit.evaluate.quick import can_quicken, quicken, rotated

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, attention_bias=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
}


def two(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same model twice: as it is, and quickened."""
    make, config = KINDS[kind]
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = make(config).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms are zeros and ones at first
                parameter.add_(torch.randn_like(parameter) * 0.1)
        models.append(model)
    plain, quick = models
    assert quicken(quick)
    return plain, quick


def tokens(rows: int, length: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, SHAPE["vocab_size"], (rows, length))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_same_states(kind: str):
    plain, quick = two(kind)
    for inputs in (tokens(3, 20), tokens(2, 7)):  # the second in the places of the first
        expected, found = (final_hidden(model, inputs) for model in (plain, quick))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_in_bfloat16_as_near_to_the_exact_states(kind: str):
    plain, quick = two(kind, torch.bfloat16)
    inputs = tokens(6, 40)
    states = [final_hidden(model, inputs) for model in (plain, quick)]
    exact = final_hidden(plain.float(), inputs)
    errors = [float((own - exact).abs().mean()) for own in states]
    assert errors[1] <= 1.1 * errors[0]
    assert errors[1] < 0.02 * float(exact.abs().mean())


@torch.inference_mode()
def test_after_a_cache_with_a_mask():
    plain, quick = two("llama")
    first, rest = tokens(2, 9), tokens(2, 4)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, 6:9] = 0
    places = torch.tensor([[6, 7, 8, 9], [9, 10, 11, 12]])
    found = []
    for model in (plain, quick):
        cache = DynamicCache(config=model.config)
        final_hidden(model, first, past_key_values=cache, use_cache=True)
        final_hidden(model, tokens(2, 30))  # must not be written over what the cache keeps
        more = {"attention_mask": mask, "position_ids": places, "use_cache": True}
        found.append(final_hidden(model, rest, past_key_values=cache, **more))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_steps_between_products_are_the_same_bits():
    plain, quick = two("llama", torch.bfloat16)
    x = torch.randn(3, 5, 48).bfloat16()
    for name in ("norm", "layers.0.input_layernorm"):
        one, other = (model.model.get_submodule(name) for model in (plain, quick))
        assert torch.equal(other(x), one(x))
    heads = torch.randn(3, 11, 8, 8).bfloat16()
    cos, sin = plain.model.rotary_emb(heads, torch.arange(11)[None])
    expected, _ = apply_rotary_pos_emb(heads, heads, cos, sin, unsqueeze_dim=2)
    assert torch.equal(rotated(heads, cos, sin), expected)
    each = cos.repeat(3, 1, 1), sin.repeat(3, 1, 1)
    assert torch.equal(rotated(heads, *each), expected)


@torch.inference_mode()
def test_what_is_written_into_parameters_is_seen():
    plain, quick = two("qwen2")
    before = final_hidden(quick, tokens(1, 6))
    for model in (plain, quick):
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.view(-1).mul_(0.5)
    expected, found = (final_hidden(model, tokens(1, 6)) for model in (plain, quick))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)
    state = quick.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


def test_training_is_left_alone():
    plain, quick = two("llama")
    gradients = []
    for model in (plain, quick):
        model.train()
        model(input_ids=tokens(2, 6), labels=tokens(2, 6)).loss.backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert torch.equal(*gradients)


def test_others_are_left_as_they_are():
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    assert not quicken(gpt)
    assert "forward" not in vars(gpt.transformer.h[0].attn)
    sliding = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))
    assert not can_quicken(sliding)
    shared = LlamaForCausalLM(KINDS["llama"][1])
    shared.model.layers[1].mlp.up_proj = torch.nn.Identity()
    assert not can_quicken(shared)


@torch.inference_mode()
def test_more_positions_than_one_product_takes(monkeypatch: pytest.MonkeyPatch):
    plain, _ = two("llama")
    states, targets = torch.randn(23, 48), tokens(1, 23)[0].tolist()
    whole = plain.lm_head(states).log_softmax(1)[range(23), targets]
    monkeypatch.setattr("toolkit.evaluate.head._PRODUCT_ROWS", 10)
    monkeypatch.setattr("toolkit.evaluate.head._ROWS", 4)
    torch.testing.assert_close(picked_log_probabilities(plain, states, targets), whole)
