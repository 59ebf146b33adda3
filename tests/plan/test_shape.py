"""Parameters and FLOPs, against published totals and worked by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import tiny_config
from tests.helpers.shapes import LLAMA_3_70B, MIXTRAL, ROUND, SMOL
from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.shape import (
    count_parameters,
    lora_parameters,
    recomputed,
    training_flops,
)
from toolkit.train.config import TrainSection
from toolkit.train.trainable import prepare_model


def test_published_totals():
    assert count_parameters(SMOL).total == 134_515_008  # the file of the model, counted
    assert round(count_parameters(LLAMA_3_70B).total / 1e9, 1) == 70.6
    mixtral = count_parameters(MIXTRAL)
    assert round(mixtral.total / 1e9, 1) == 46.7
    assert round(mixtral.active / 1e9, 1) == 12.9


def test_worked_by_hand():
    # layer: attention 4 x 10 x 10 = 400, feed-forward 3 x 10 x 20 = 600, norms 20 -> 1,020
    # all: 2 x 1,020 + embedding 1,000 + head 1,000 + last norm 10 = 4,050
    found = count_parameters(ROUND)
    assert (found.layer, found.total, found.active) == (1020, 4050, 4050)
    assert found.multiplied == 3050  # the embedding is looked up


def test_experts_worked_by_hand():
    # layer: attention 400, router 10 x 4 = 40, norms 20, 4 experts + 1 shared of 3 x 10 x 5 = 150
    # -> 1,210; a token meets 2 + 1 of them -> 910. One dense layer of 1,020 comes first.
    shape = ROUND.model_copy(
        update={
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 5,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
        }
    )
    found = count_parameters(shape)
    assert found.total == 1020 + 1210 + 2010
    assert found.active == 1020 + 910 + 2010


def test_published_totals_win_over_the_measures():
    shape = ROUND.model_copy(update={"num_parameters": 9000, "num_active_parameters": 4000})
    found = count_parameters(shape)
    assert (found.total, found.active) == (9000, 4000)


@pytest.mark.parametrize("tied", [True, False])
def test_a_real_model_has_as_many(tied: bool):
    config = tiny_config(tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    known = {
        name: getattr(config, name) for name in ShapeSection.model_fields if hasattr(config, name)
    }
    shape = ShapeSection.model_validate(
        {k: v for k, v in known.items() if v is not None and k != "rope_theta"}
    )
    assert count_parameters(shape).total == sum(p.numel() for p in model.parameters())
    adapted = prepare_model(model, TrainSection.model_validate({"lora": {"rank": 4}}))
    learns = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora_parameters(shape, 4) == learns


def test_lora_by_hand():
    # a layer: q, k, v, o: 4 x (10 + 10); gate, up, down: 3 x (10 + 20) -> 170; 2 layers, rank 3
    assert lora_parameters(ROUND, 3) == 3 * 2 * 170


def test_flops_by_hand():
    # 2 x 3,050 + attention 2 x 2 layers x 10 x 8 tokens = 320 -> forward 6,420; three times that
    assert training_flops(ROUND, 8) == 3 * 6420
    assert training_flops(ROUND, 8, again=recomputed("full")) == 4 * 6420
    assert training_flops(ROUND, 8, again=recomputed("selective")) == 3 * 6420
    # frozen weights: twice 6,100; attention and the adapters (2 x 1,020) three times
    assert training_flops(ROUND, 8, lora_rank=3) == 2 * 6100 + 3 * (320 + 2 * 1020)


def test_experts_cost_what_is_active():
    dense = training_flops(LLAMA_3_70B, 8192)
    assert training_flops(MIXTRAL, 8192) < 0.25 * dense
    assert training_flops(MIXTRAL, 2) == pytest.approx(6 * 12.9e9, rel=0.02)


def test_a_real_models_saved_activations_are_what_the_formula_says():
    """One layer's activations, counted by autograd's own hooks, bytes a token."""
    from toolkit.plan.activations import activation_bytes, fused_activations
    from toolkit.train.fuse import fuse
    from toolkit.train.model import NextTokenLoss

    def saved(layers: int, kind: torch.dtype, *, fused: bool = False) -> int:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=320, hidden_size=64, intermediate_size=160, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        assert not fused or fuse(model, kind)
        module = NextTokenLoss(model.train(), kind, fused=fused)
        ours = {p.untyped_storage().data_ptr() for p in module.parameters()}
        seen: dict[int, tuple[int, torch.Tensor]] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in ours:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        ids = torch.randint(1, 320, (1, 64))
        low = kind == torch.bfloat16
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=low),
        ):
            module(ids, ids, (torch.arange(64) // 32)[None])
        return sum(size for size, _ in seen.values())

    shape = ROUND.model_copy(
        update={
            "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 320,
        }
    )  # fmt: skip
    for precision, kind, copies in (("bf16", torch.bfloat16, 2), ("fp32", torch.float32, 0)):
        section = TrainSection.model_validate(
            {"precision": precision, "gradient_checkpointing": "none"}
        )
        matrices = copies * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
        formula = 64 * activation_bytes(shape, section, 64)[0] + matrices
        assert saved(3, kind) - saved(2, kind) == formula
    section = TrainSection(precision="bf16")
    formula = 64 * fused_activations(shape, section, 64, 64)[0]  # and no copies of matrices
    low = torch.bfloat16
    assert saved(3, low, fused=True) - saved(2, low, fused=True) == formula
