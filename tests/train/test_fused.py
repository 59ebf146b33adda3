"""Fused blocks: the model's own arithmetic, and no more memory than said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.conftest import tiny_config
from toolkit.train.activations import checkpoint_activations
from toolkit.train.config import TrainSection
from toolkit.train.fuse import can_fuse, fuse, unfuse
from toolkit.train.fused import gated, project
from toolkit.train.fused_attention import attend
from toolkit.train.model import NextTokenLoss
from toolkit.train.trainable import prepare_model
from toolkit.train.workspace import WORKSPACE

BF16, FP32 = torch.bfloat16, torch.float32
TYPES = pytest.mark.parametrize("dtype", [BF16, FP32])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@TYPES
def test_a_norm_and_a_product_worked_by_hand(dtype: torch.dtype):
    # The root of the mean square of (3, 4) is sqrt(12.5); times (1, 2), then the difference.
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    scale = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    out = project(x, [weight], [None], (scale, 0.0), dtype=dtype)
    assert out.dtype is dtype
    few = 2**-7 if dtype is BF16 else 2**-21
    assert out.item() == pytest.approx(5 / 12.5**0.5, rel=few)
    out.sum().backward()
    assert_close(scale.grad, torch.tensor([-3.0, 4.0]) / 12.5**0.5, rtol=few, atol=0)
    assert_close(weight.grad, torch.tensor([[3.0, 8.0]]) / 12.5**0.5, rtol=few, atol=0)
    # d/dx of (2 x2 - x1) / rms is (-1, 2) / rms less x times 5 / (2 rms^3).
    expected = torch.tensor([[-1.0, 2.0]]) / 12.5**0.5 - x.detach() * 2.5 / 12.5**1.5
    assert_close(x.grad, expected, rtol=2 * few, atol=few)


def close(found: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Errors as the type makes them: small against the tensor's own size."""
    part = 0.02 if dtype is BF16 else 1e-6
    difference = found.detach().double() - truth.detach().double()
    assert difference.norm() <= part * truth.detach().double().norm()


@TYPES
def test_several_products_with_biases(dtype: torch.dtype):
    x, weights = rand(7, 16).to(dtype), [rand(8, 16, seed=1), rand(4, 16, seed=2)]
    biases = [rand(8, seed=3), rand(4, seed=4)]
    leaves = [x, *weights, *biases]
    above = rand(7, 12, seed=5)
    found, truth = [], []
    for given, results in ((leaves, found), ([t.double() for t in leaves], truth)):
        own = [t.clone().requires_grad_() for t in given]
        if results is found:
            out = project(own[0], own[1:3], own[3:], dtype=dtype)
        else:
            out = own[0] @ torch.cat(own[1:3]).T + torch.cat(own[3:])
        out.backward(above.to(out.dtype))
        results += [out.detach(), *(t.grad for t in own)]
    for one, other in zip(found, truth, strict=True):
        close(one, other, dtype)


@TYPES
def test_a_gated_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.train.fused.CACHE_ENTRIES", 64)  # in several pieces
    leaves = [rand(9, 16), 1 + 0.1 * rand(16, seed=1), *(rand(24, 16, seed=s) for s in (2, 3))]
    leaves.append(rand(16, 24, seed=4))
    above = rand(9, 16, seed=5)
    own = [t.clone().requires_grad_() for t in leaves]
    out = gated(own[0], (own[1], 1e-5), *own[2:], dtype=dtype)
    out.backward(above.to(dtype), retain_graph=True)
    exact = [t.double().requires_grad_() for t in leaves]
    y = torch.nn.functional.rms_norm(exact[0], (16,), exact[1], 1e-5)
    truth = (torch.nn.functional.silu(y @ exact[2].T) * (y @ exact[3].T)) @ exact[4].T
    truth.backward(above.double())
    close(out, truth, dtype)
    for one, other in zip(own, exact, strict=True):
        close(one.grad, other.grad, dtype)
    # Gradients took the place of what was kept: a second time would be wrong, and is refused.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(above.to(dtype))


@TYPES
@pytest.mark.parametrize("scale", [0.3, 0.25])
@pytest.mark.parametrize("tile", [3, 128])
def test_attention_stays_within_pieces(
    tile: int, scale: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Against attention with a mask, in float64: two key heads, three queries each."""
    monkeypatch.setattr("toolkit.train.fused_attention.TILE", tile)
    edges, kinds, group, entries = [0, 4, 5, 17], 2, 3, 8
    qkv = rand(17, (kinds * group + 2 * kinds) * entries).to(dtype).requires_grad_()
    angles = rand(17, entries // 2, seed=1).repeat(1, 2)
    above = rand(17, kinds * group * entries, seed=2)
    out = attend(qkv, angles.cos(), angles.sin(), edges, (kinds, group), scale)
    out.backward(above.to(dtype))

    exact = qkv.detach().double().requires_grad_()
    heads = exact.view(17, -1, entries).transpose(0, 1)
    rotated = torch.cat([-heads[..., entries // 2 :], heads[..., : entries // 2]], -1)
    rotated = heads * angles.cos() + rotated * angles.sin()
    queries, keys = rotated[: kinds * group], rotated[kinds * group : kinds * group + kinds]
    values = heads[-kinds:].repeat_interleave(group, 0)
    place = torch.bucketize(torch.arange(17), torch.tensor(edges), right=True)
    mask = (place[:, None] == place) & torch.ones(17, 17, dtype=torch.bool).tril()
    truth = torch.nn.functional.scaled_dot_product_attention(
        queries, keys.repeat_interleave(group, 0), values, attn_mask=mask, scale=scale
    )
    truth = truth.transpose(0, 1).reshape(17, -1)
    truth.backward(above.double())
    close(out, truth, dtype)
    close(qkv.grad, exact.grad, dtype)


def llama(**changes: Any) -> Any:
    return LlamaForCausalLM(tiny_config(**changes))


SMALL: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"max_position_embeddings": 256}


def mistral(window: int | None = None) -> Any:
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window))


def qwen2() -> Any:
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL))
    for layer in model.model.layers:  # zero as they are made
        for part in ("q_proj", "k_proj", "v_proj"):
            torch.nn.init.normal_(getattr(layer.self_attn, part).bias, std=0.5)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    segments = torch.tensor([[0] * 9 + [1] * 20 + [2] * 3, [0] * 31 + [-1]])
    ids = torch.randint(1, 300, segments.shape, generator=torch.Generator().manual_seed(0))
    return ids, torch.where(segments >= 0, ids.roll(-1, dims=1), -100), segments


def gradients(model: Any, dtype: torch.dtype, fused: bool) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    module = NextTokenLoss(model.train(), dtype, fused=fused)
    with torch.autocast("cpu", dtype=BF16, enabled=dtype is BF16):
        loss = module(*batch())
        (loss / 50).backward()
    named = model.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("make", [llama, mistral, qwen2])
def test_gradients_are_as_close_to_the_truth_as_autocast_s(make: Callable[..., Any]):
    torch.manual_seed(3)
    model = make()
    exact, truth = gradients(model, torch.float32, False)
    cast, casts = gradients(model, BF16, False)
    assert fuse(model, BF16)
    loss, found = gradients(model, BF16, True)
    assert loss == pytest.approx(exact, abs=max(0.05, 2 * abs(cast - exact)))
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        allowed = 1.5 * float((casts[name] - value).norm()) + 1e-6
        assert float((found[name] - value).norm()) <= allowed, name


@pytest.mark.parametrize("make", [llama, mistral, qwen2])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_float32_gives_the_model_s_own_losses_and_gradients(
    make: Callable[..., Any], checkpointing: str
):
    torch.manual_seed(3)
    model = make()
    loss, truth = gradients(model, FP32, False)
    assert fuse(model, FP32)
    checkpoint_activations(model, checkpointing)
    fused_loss, found = gradients(model, FP32, True)
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert float((found[name] - value).norm()) <= 1e-5 * float(value.norm()), name


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_what_a_block_is_lent_is_freed_where_it_is_computed_again(
    checkpointing: str, monkeypatch: pytest.MonkeyPatch
):
    model, lend, lent = llama(), WORKSPACE.lend, []

    def remembered(*given: Any) -> Tensor:
        tensor = lend(*given)
        lent.append(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    monkeypatch.setattr(WORKSPACE, "lend", remembered)
    assert fuse(model, FP32)
    checkpoint_activations(model, checkpointing)
    loss = NextTokenLoss(model.train(), FP32, fused=True)(*batch())
    assert len(lent) == 3 * len(model.model.layers)
    assert all(place.expired() == (checkpointing == "full") for place in lent)
    loss.backward()
    unfuse(model)


def test_computing_again_changes_no_bit():
    results = []
    for checkpointing in ("none", "full"):
        torch.manual_seed(3)
        model = llama()
        assert fuse(model, FP32)
        checkpoint_activations(model, checkpointing)
        # Twice, as the second pass uses what the first gave back.
        results.append([gradients(model, FP32, True) for _ in range(2)])
        unfuse(model)
    for (loss, found), (other_loss, others) in zip(*results, strict=True):
        assert loss == other_loss
        assert all(torch.equal(value, others[name]) for name, value in found.items())


def test_a_power_of_two_scales_queries_bit_for_bit(monkeypatch: pytest.MonkeyPatch):
    """As good as scaling their scores, in bfloat16 too."""
    angles = rand(40, 4, seed=1).repeat(1, 2)
    outcomes = []
    for _ in range(2):
        qkv = rand(40, 5 * 8).to(BF16).requires_grad_()
        out = attend(qkv, angles.cos(), angles.sin(), [0, 40], (1, 3), 0.25)
        out.backward(rand(40, 24, seed=2).to(BF16))
        outcomes.append((out.detach(), qkv.grad))
        monkeypatch.setattr("toolkit.train.fused_attention._late_scale", lambda scale, _: scale)
    assert all(torch.equal(*both) for both in zip(*outcomes, strict=True))


def test_scoring_is_left_alone():
    model = llama().eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        fuse(model, BF16)
        assert torch.equal(model(input_ids=ids).logits, before)
        assert torch.equal(model.train()(input_ids=ids).logits, before)
    unfuse(model)
    assert not any("forward" in vars(module) for module in model.modules())


@TYPES
def test_what_is_frozen_gets_no_gradient(dtype: torch.dtype):
    model = llama()
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    model.model.layers[1].mlp.down_proj.weight.requires_grad_(False)
    fuse(model, dtype)
    _, found = gradients(model, dtype, True)
    own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == own


def test_models_with_other_parts_are_left_as_they_are(
    tmp_path: Path, make_model: Callable[..., Path]
):
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    others = [
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, **ends)),
        mistral(window=8),
        llama(hidden_act="gelu"),
        llama(mlp_bias=True),
        llama(attention_dropout=0.1),
    ]
    adapted = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m"))
    lora = TrainSection.model_validate({"lora": {"rank": 2}})
    others.append(prepare_model(adapted, lora).get_base_model())
    for model in others:
        assert not can_fuse(model)
        assert not fuse(model, FP32)
        assert not any("forward" in vars(module) for module in model.modules())
