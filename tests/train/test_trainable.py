"""What learns: all, chosen parameters, adapters, new blocks, embeddings at another rate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from tests.helpers.token_blocks import make_blocks
from toolkit.errors import ConfigError
from toolkit.train import trainable
from toolkit.train.config import TrainSection
from toolkit.train.loop import train
from toolkit.train.trainable import finished_model, parameter_groups, prepare_model


@pytest.fixture
def model(tmp_path: Path, make_model: Callable[..., Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))


def section(**values: Any) -> TrainSection:
    base = {"precision": "fp32", "schedule": {"peak_lr": 1e-2}, "epochs": 4}
    return TrainSection.model_validate({**base, **values})


def run(model: Any, given: TrainSection, tmp_path: Path) -> tuple[dict[str, Any], Any]:
    """What changed, and the trained model as plain weights."""
    prepared = prepare_model(model, given)
    before = {n: p.detach().clone() for n, p in prepared.named_parameters()}
    blocks = make_blocks(
        tmp_path / "blocks", {"a": [[n % 300] * 40 for n in range(1, 9)]}, epochs=given.epochs
    )
    (tmp_path / "w").mkdir()
    results = train(prepared, blocks, given, seed=1, work=tmp_path / "w")
    assert results.last_loss < results.first_loss
    changed = {n: not torch.equal(p, before[n]) for n, p in prepared.named_parameters()}
    return changed, finished_model(prepared)


def test_chosen_parameters_alone_learn(model: Any, tmp_path: Path):
    changed, _ = run(model, section(trainable=["model.layers.1.*"]), tmp_path)
    assert all(value == name.startswith("model.layers.1.") for name, value in changed.items())


def test_a_pattern_that_fits_nothing_is_named(model: Any):
    with pytest.raises(ConfigError, match=r"no parameter fits 'model\.layer\.1\.\*'"):
        prepare_model(model, section(trainable=["model.layer.1.*"]))


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_merged_into_the_weights(model: Any, tmp_path: Path, dora: bool):
    names = {name for name, _ in model.named_parameters()}
    embedding = model.get_input_embeddings().weight.detach().clone()
    changed, finished = run(model, section(lora={"rank": 4, "dora": dora}), tmp_path)
    assert all(value == ("lora_" in name) for name, value in changed.items())
    assert {name for name, _ in finished.named_parameters()} == names
    assert torch.equal(finished.get_input_embeddings().weight, embedding)


def test_adapters_begin_with_values_of_the_seed(model: Any):
    given = section(lora={"rank": 4})

    def first_values(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed)  # whatever was drawn before
        drawn = torch.random.get_rng_state()
        adapted = prepare_model(copy.deepcopy(model), given, seed)
        assert torch.equal(torch.random.get_rng_state(), drawn)
        return {n: p for n, p in adapted.named_parameters() if "lora_A" in n}

    once, again, other = first_values(1), first_values(1), first_values(2)
    assert all(torch.equal(values, again[name]) for name, values in once.items())
    assert not any(torch.equal(values, other[name]) for name, values in once.items())


def test_adapters_for_modules_that_are_not_there(model: Any):
    with pytest.raises(ConfigError, match=r"train\.lora\.target_modules"):
        prepare_model(model, section(lora={"target_modules": ["query"]}))


def test_new_blocks_change_nothing_until_they_learn(model: Any, tmp_path: Path):
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        grown = prepare_model(model, section(block_expansion={"num_blocks": 2}))
        assert_close(grown(input_ids=ids).logits, before, rtol=0, atol=0)
    assert grown.config.num_hidden_layers == 4
    grown.save_pretrained(tmp_path / "grown")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    with torch.no_grad():
        assert_close(again(input_ids=ids).logits, before, rtol=0, atol=0)


SMALL: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64}
SMALL |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DEEPSEEK: dict[str, Any] = {
    "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Phi", {}),
        ("Mixtral", {"num_local_experts": 4}),
        ("SmolLM3", {}),  # says layer by layer which has positions
        ("DeepseekV3", {**DEEPSEEK, "first_k_dense_replace": 1}),
    ],
)
def test_new_blocks_of_other_kinds_change_nothing_either(
    kind: str, settings: dict[str, Any], tmp_path: Path
):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **settings})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero as they are made
            torch.nn.init.normal_(parameter)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        grown = prepare_model(model, section(block_expansion={"num_blocks": 2}))
        assert_close(grown(input_ids=ids).logits, before, rtol=0, atol=0)
        grown.save_pretrained(tmp_path / "grown")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
        assert_close(again(input_ids=ids).logits, before, rtol=0, atol=0)


def test_a_new_block_that_cannot_be_silenced_is_refused(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainable, "_block_outputs", lambda *_: ["mlp.down_proj.weight"])
    with pytest.raises(ConfigError, match=r"of a llama .* cannot be made to add nothing"):
        prepare_model(model, section(block_expansion={"num_blocks": 1}))


def test_layers_whose_kind_follows_from_their_number_are_refused():
    settings = {**SMALL, **DEEPSEEK, "first_k_dense_replace": 2}
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**settings))
    # The first two blocks are dense; with a copy of the first there would be three.
    with pytest.raises(ConfigError, match="in a deepseek_v3 the kind of a layer follows"):
        prepare_model(model, section(block_expansion={"num_blocks": 4}))


def test_only_new_blocks_learn(model: Any, tmp_path: Path):
    changed, _ = run(model, section(block_expansion={"num_blocks": 1}), tmp_path)
    assert all(value == name.startswith("model.layers.2.") for name, value in changed.items())


def test_more_new_blocks_than_old_are_refused(model: Any):
    with pytest.raises(ConfigError, match="must be at most the model's 2"):
        prepare_model(model, section(block_expansion={"num_blocks": 3}))


def test_embeddings_have_a_rate_of_their_own(model: Any):
    groups = parameter_groups(model, 0.1, 0.1)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert scales[id(parameter)] == (0.1 if "embed" in name or "lm_head" in name else 1.0)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_embeddings_can_stay_as_they_are(model: Any, tmp_path: Path):
    changed, _ = run(model, section(optimizer={"embedding_lr_scale": 0.0}), tmp_path)
    assert not changed["model.embed_tokens.weight"]
    assert changed["model.norm.weight"]


def test_embeddings_alone_that_stay_as_they_are(model: Any):
    given = section(trainable=["*embed_tokens*"], optimizer={"embedding_lr_scale": 0.0})
    with pytest.raises(ConfigError, match=r"embedding_lr_scale: 0 .*\*embed_tokens\*.*nothing"):
        prepare_model(model, given)


def test_one_way_of_training_at_a_time():
    with pytest.raises(ValueError, match="lora or block_expansion"):
        section(lora={}, block_expansion={})
