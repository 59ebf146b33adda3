"""Mixtures of experts: what they compute, and what they are refused for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.conftest import tiny_config
from toolkit.checkpoint.models import Models
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.moe.config import MoeConfig, load_moe_config
from toolkit.merge.moe.plan import plan_moe
from toolkit.merge.moe.router import router_rows
from toolkit.merge.moe.run import describe_moe, run_moe
from toolkit.section import parse_section

TOKENS = torch.tensor([[5, 17, 200, 31, 4, 99, 310, 2]])


def parse(data: dict[str, Any]) -> MoeConfig:
    return parse_section(MoeConfig, data, where="test", what="configuration")


def mixture(base: Path, *experts: Path | dict[str, Any], **more: Any) -> MoeConfig:
    listed = [e if isinstance(e, dict) else {"source_model": str(e)} for e in experts]
    return parse({"base_model": str(base), "experts": listed, "gate_mode": "random", **more})


def load_strictly(folder: Path) -> Any:
    """As a user loads it; nothing may be missing, unexpected or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    found: torch.Tensor = load_strictly(folder)(TOKENS).logits
    return found


def make_family(folder: Path, kind: str, make_model: Callable[..., Path]) -> Path:
    torch.manual_seed(3)
    plain = {
        key: value
        for key, value in tiny_config().to_dict().items()
        if key not in {"model_type", "architectures", "attention_bias", "mlp_bias"}
    }
    if kind == "llama":
        return make_model(folder, seed=3)
    if kind == "llama, own head":
        return make_model(folder, seed=3, tie_word_embeddings=False, rope_theta=5e4)
    if kind == "mistral":
        model: Any = MistralForCausalLM(MistralConfig(**{**plain, "sliding_window": 4}))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**plain))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**{**plain, "head_dim": 16}))
    with torch.no_grad():  # biases begin as zeros, norms as ones
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("llama", "MixtralForCausalLM"),
        ("llama, own head", "MixtralForCausalLM"),
        ("mistral", "MixtralForCausalLM"),
        ("qwen2", "Qwen2MoeForCausalLM"),
        ("qwen3", "Qwen3MoeForCausalLM"),
    ],
)
def test_copies_of_the_base_compute_what_it_does(
    tmp_path: Path, make_model: Callable[..., Path], kind: str, layout: str
):
    base = make_family(tmp_path / "base", kind, make_model)
    plan = run_moe(mixture(base, base, base, base), tmp_path / "moe")
    model = load_strictly(tmp_path / "moe")
    assert type(model).__name__ == plan.layout.architecture == layout
    assert model.config.tie_word_embeddings is (kind != "llama, own head")
    torch.testing.assert_close(logits(tmp_path / "moe"), logits(base), rtol=1e-5, atol=1e-5)
    assert plan.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_shared_expert_beside_halved_ones_computes_the_same(
    tmp_path: Path, make_model: Callable[..., Path]
):
    # its gate of zeros lets half through: 0.5 MLP + 0.5 MLP = MLP
    base = make_model(tmp_path / "base", seed=3)
    half = {"source_model": str(base), "residual_scale": 0.5}
    config = mixture(base, half, half, shared_experts=[{"source_model": str(base)}])
    plan = run_moe(config, tmp_path / "moe")
    assert plan.layout.name == "Qwen MoE"
    torch.testing.assert_close(logits(tmp_path / "moe"), logits(base), rtol=1e-5, atol=1e-5)


def test_experts_in_every_second_layer(tmp_path: Path, make_model: Callable[..., Path]):
    base = make_model(tmp_path / "base", seed=3)
    config = mixture(base, base, base, architecture="qwen", sparse_step=2)
    plan = run_moe(config, tmp_path / "moe")
    assert plan.sparse_layers == (1,)
    torch.testing.assert_close(logits(tmp_path / "moe"), logits(base), rtol=1e-5, atol=1e-5)


def test_where_every_tensor_comes_from(two_models: tuple[Path, Path], tmp_path: Path):
    base, tuned = two_models
    plan = run_moe(mixture(base, base, tuned), tmp_path / "moe", shard_bytes=50_000)
    files = [load_file(path) for path in sorted((tmp_path / "moe").glob("model-*.safetensors"))]
    assert len(files) > 1
    made = {name: tensor for file in files for name, tensor in file.items()}
    general, special = (load_file(folder / "model.safetensors") for folder in two_models)
    experts = "model.layers.1.block_sparse_moe.experts"
    for number, source in enumerate((general, special)):
        for own, dense in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            copied = made.pop(f"{experts}.{number}.{own}.weight")
            assert torch.equal(copied, source[f"model.layers.1.mlp.{dense}.weight"])
    for name in general:
        if ".mlp." not in name:
            assert torch.equal(made[name], general[name]), name
    # 2 layers of 3 matrices [64, 32] for each expert; one of two is used
    dense = sum(t.numel() for t in general.values())
    assert plan.num_parameters == dense + 2 * 3 * 64 * 32 + 2 * 2 * 32
    config = mixture(base, base, tuned, experts_per_token=1)
    assert plan_moe(config, Models()).num_active == dense + 2 * 2 * 32
    words = describe_moe(config, plan)
    assert f"expert 1: {tuned}" in words
    assert "the router learns from its balancing loss alone" in words
    assert "all experts are the same" not in words
    same = mixture(base, base, base)
    assert "all experts are the same" in describe_moe(same, plan_moe(same, Models()))


def test_the_same_seed_gives_the_same_bytes_and_noise_is_by_name(
    tmp_path: Path, make_model: Callable[..., Path]
):
    base = make_model(tmp_path / "base", seed=1)
    noisy = {"source_model": str(base), "noise_scale": 0.01}
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        run_moe(mixture(base, noisy, noisy), tmp_path / name, seed=seed)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    expert = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    dense = load_file(base / "model.safetensors")["model.layers.0.mlp.gate_proj.weight"]
    noise = [a[expert.format(number)] - dense for number in range(2)]
    assert not torch.equal(noise[0], noise[1])
    assert all(0.009 < float(part.std()) < 0.011 for part in noise)
    assert not torch.equal(a[expert.format(0)], c[expert.format(0)])
    router = "model.layers.0.block_sparse_moe.gate.weight"
    assert torch.equal(a[router], b[router])
    assert not torch.equal(a[router], a[router.replace(".0.", ".1.", 1)])


def test_hidden_rows_are_what_the_router_sees(two_models: tuple[Path, Path]):
    base, tuned = two_models
    experts = [
        {"source_model": str(base), "positive_prompts": ["the board", "a retailer"]},
        {
            "source_model": str(tuned),
            "positive_prompts": ["lease costs"],
            "negative_prompts": ["debt"],
        },
    ]
    config = mixture(base, *experts, gate_mode="hidden")
    plan = plan_moe(config, Models())
    rows = router_rows(config, plan, Models(), seed=0)
    model = load_strictly(base)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def state(prompt: str, layer: int) -> torch.Tensor:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            before = model(ids, output_hidden_states=True).hidden_states[layer]
            block = model.model.layers[layer]
            positions = torch.arange(ids.shape[1])[None]
            attended = block.self_attn(
                block.input_layernorm(before),
                position_embeddings=model.model.rotary_emb(before, positions),
                attention_mask=None,
            )[0]
            seen: torch.Tensor = block.post_attention_layernorm(before + attended)
        return seen[0].mean(dim=0)

    for layer in range(2):
        made = rows[plan.layout.router(layer)]
        first = (state("the board", layer) + state("a retailer", layer)) / 2
        second = state("lease costs", layer) - state("debt", layer)
        expected = torch.stack([first / first.norm(), second / second.norm()])
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_cheap_embed_is_the_mean_of_embeddings(two_models: tuple[Path, Path], tiny_tokenizer: Any):
    base, tuned = two_models
    experts = [
        {"source_model": str(base), "positive_prompts": ["the board"]},
        {"source_model": str(tuned), "positive_prompts": ["debt"]},
    ]
    config = mixture(base, *experts, gate_mode="cheap_embed")
    plan = plan_moe(config, Models())
    rows = router_rows(config, plan, Models(), seed=0)
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    for number, prompt in enumerate(("the board", "debt")):
        vector = table[tiny_tokenizer(prompt)["input_ids"]].mean(dim=0)
        for layer in range(2):
            torch.testing.assert_close(
                rows[plan.layout.router(layer)][number], vector / vector.norm()
            )


def test_random_rows_of_a_new_linear_layer_stay_in_its_bounds(two_models: tuple[Path, Path]):
    config = mixture(*two_models, two_models[0], gate_mode="uniform_random")
    plan = plan_moe(config, Models())
    rows = router_rows(config, plan, Models(), seed=0)
    bound = 32**-0.5
    values = torch.cat([row.flatten() for row in rows.values()])
    assert 0.9 * bound < float(values.abs().max()) <= bound
    assert float(values.min()) < 0 < float(values.max())


def test_the_dtype_is_the_widest_or_the_one_given(tmp_path: Path, make_model: Callable[..., Path]):
    base = make_model(tmp_path / "base", seed=1, dtype=torch.bfloat16)
    wide = make_model(tmp_path / "wide", seed=2)
    assert plan_moe(mixture(base, base, base), Models()).dtype == "BF16"
    assert plan_moe(mixture(base, base, wide), Models()).dtype == "F32"
    run_moe(mixture(base, base, wide, dtype="float16"), tmp_path / "moe")
    made = load_file(tmp_path / "moe" / "model.safetensors")
    assert {tensor.dtype for tensor in made.values()} == {torch.float16}
    assert json.loads((tmp_path / "moe" / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts_per_tokn": 1}, "experts_per_tokn: unknown key; did you mean experts_per_token"),
        ({"experts_per_token": 3}, "3 of 2 experts"),
        ({"gate_mode": "hidden"}, "experts.0.positive_prompts"),
        ({"gate_mode": "fixed"}, "gate_mode: must be one of"),
        ({"experts": []}, "experts"),
    ],
)
def test_bad_configurations(change: dict[str, Any], message: str):
    data = {"base_model": "a", "gate_mode": "random"}
    data |= {"experts": [{"source_model": "a"}, {"source_model": "b"}], **change}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=message):
        parse(data)


def test_prompts_that_tell_no_expert_from_another():
    expert = {"source_model": "a", "positive_prompts": ["hello"]}
    with pytest.raises(ConfigError, match="all have the same prompts"):
        parse({"base_model": "a", "experts": [expert, expert]})


def test_a_configuration_of_mergekit_is_read(tmp_path: Path):
    from mergekit.moe.config import MoEMergeConfig

    text = """
base_model: general
gate_mode: cheap_embed
dtype: bfloat16
experts_per_token: 1
experts:
  - source_model: general
    positive_prompts: [hello]
    noise_scale: 0.1
  - source_model: law
    positive_prompts: [court]
    negative_prompts: [recipe]
    residual_scale: 0.5
"""
    (tmp_path / "moe.yml").write_text(text)
    import yaml

    theirs = MoEMergeConfig.model_validate(yaml.safe_load(text))
    ours = load_moe_config(tmp_path / "moe.yml")
    assert ours.experts_per_token == theirs.experts_per_token
    assert [list(e.positive_prompts) for e in ours.experts] == [
        e.positive_prompts for e in theirs.experts
    ]
    assert {*MoEMergeConfig.model_fields} <= {*MoeConfig.model_fields}
    assert {*type(theirs.experts[0]).model_fields} == {*type(ours.experts[0]).model_fields}


def test_experts_of_another_shape(tmp_path: Path, make_model: Callable[..., Path]):
    base = make_model(tmp_path / "base")
    wide = make_model(tmp_path / "wide", intermediate_size=48)
    with pytest.raises(MergeError) as caught:
        run_moe(mixture(base, base, wide), tmp_path / "moe")
    words = str(caught.value)
    assert words.startswith("model.layers.0.mlp.gate_proj.weight: base_model is [64, 32] but ")
    assert f"{wide / 'model.safetensors'} is [48, 32]" in words
    assert not (tmp_path / "moe").exists()


def test_experts_with_more_layers(tmp_path: Path, make_model: Callable[..., Path]):
    base = make_model(tmp_path / "base")
    deep = make_model(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(MergeError, match="num_hidden_layers is 3, but the base has 2"):
        run_moe(mixture(base, base, deep), tmp_path / "moe")


def test_experts_with_other_tokens(two_models: tuple[Path, Path], tmp_path: Path):
    base, tuned = two_models
    values = json.loads((tuned / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    vocab["zzz"] = vocab.pop("!")
    (tuned / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(MergeError, match="its tokenizer is not the base's"):
        run_moe(mixture(base, base, tuned), tmp_path / "moe")


def test_a_base_without_counterpart(tmp_path: Path):
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "gpt2"
    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    ).save_pretrained(base)
    with pytest.raises(MergeError, match=r"'gpt2' model has no counterpart. Layouts: Mixtral of"):
        run_moe(mixture(base, base, base), tmp_path / "moe")


def test_biases_have_no_place_in_mixtral(tmp_path: Path, make_model: Callable[..., Path]):
    base = make_model(tmp_path / "base", attention_bias=True)
    with pytest.raises(MergeError, match=r"k_proj.bias: .* Mixtral has no place for it"):
        run_moe(mixture(base, base, base), tmp_path / "moe")


def test_nan_is_refused_and_nothing_is_left(two_models: tuple[Path, Path], tmp_path: Path):
    base, tuned = two_models
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"layers.1.mlp.up_proj.weight: holds NaN or infinity in"):
        run_moe(mixture(base, base, tuned), tmp_path / "moe")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}


def test_the_output_folder_must_be_free(two_models: tuple[Path, Path], tmp_path: Path):
    base, tuned = two_models
    with pytest.raises(MergeError, match="exists and is not empty"):
        run_moe(mixture(base, base, tuned), base)
    del tmp_path
