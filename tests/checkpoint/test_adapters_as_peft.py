"""Adapters of every kind merged into their models: the same logits as peft's own, unmerged."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from toolkit.adapter.extract import run_extract
from toolkit.adapter.extract_plan import ExtractSettings
from toolkit.errors import CheckpointError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN_MOE = {"head_dim": 8, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def llama(**more: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SMALL | more))


def gpt2() -> Any:
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    return GPT2LMHeadModel(config)


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (llama, {}),
    "head and embedding saved": (llama, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, embedding saved": (
        lambda: llama(tie_word_embeddings=True),
        {"modules_to_save": ["embed_tokens"]},
    ),
    "tied, head saved": (
        lambda: llama(tie_word_embeddings=True),
        {"modules_to_save": ["lm_head"]},
    ),
    "tied, embedding saved with its head": (
        lambda: llama(tie_word_embeddings=True),
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied, factors of the embedding": (
        lambda: llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj", "embed_tokens"]},
    ),
    "rows of tokens": (llama, {"trainable_token_indices": [60, 63]}),
    "tied, rows of tokens": (
        lambda: llama(tie_word_embeddings=True),
        {"trainable_token_indices": {"embed_tokens": [60, 63]}},
    ),
    "biases of factors": (
        lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
        {"lora_bias": True},
    ),
    "turned layers, whatever is said": (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    "turned said of linear layers": (
        llama,
        {"target_modules": ["q_proj", "up_proj"], "fan_in_fan_out": True},
    ),
    "a router by its name in memory": (
        lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3)),
        {"modules_to_save": ["gate"]},
    ),
    "all experts of a layer": (
        lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **QWEN_MOE)),
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "all experts of Mixtral": (
        lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3)),
        {"target_parameters": ["mlp.experts.down_proj"], "rank_pattern": {"q_proj": 2}},
    ),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(3, 64, 4)[None]).logits
    return result


def adapt(base: Path, out: Path, settings: dict[str, Any], resize: int | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if resize is not None:
        model.resize_token_embeddings(resize, mean_resizing=False)
    values = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**values | settings))
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        adapted.save_pretrained(out)
    return adapted.eval()


def bake(base: Path, adapter: Path, out: Path) -> Any:
    data = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    run_merge(parse_merge_config(data, where="test"), out)
    model, info = AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_as_peft_computes_it(name: str, tmp_path: Path):
    make, settings = CASES[name]
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    expected = logits(adapt(tmp_path / "base", tmp_path / "lora", settings))
    found = logits(bake(tmp_path / "base", tmp_path / "lora", tmp_path / "out"))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    plain = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval())
    assert not torch.allclose(found, plain, atol=1e-3)


def test_more_tokens_than_the_model_has(tmp_path: Path):
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "base")
    settings = {"modules_to_save": ["embed_tokens", "lm_head"]}
    expected = logits(adapt(tmp_path / "base", tmp_path / "lora", settings, resize=66))
    model = bake(tmp_path / "base", tmp_path / "lora", tmp_path / "out")
    assert model.config.vocab_size == 66
    torch.testing.assert_close(logits(model), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s, _: s.update({"new_trick": 3}), "new_trick is no setting known here"),
        (lambda _, t: t.clear(), "holds no tensor of an adapter"),
        (
            lambda _, t: t.update({next(iter(t)): torch.empty(0)}),
            "has no entries",
        ),
        (
            lambda _, t: t.update(
                {n.replace("q_proj.", "q_proj.base_layer."): v + 1 for n, v in list(t.items())}
            ),
            "are both meant for",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, spoil: Callable[[Any, Any], Any], words: str):
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "base")
    adapt(tmp_path / "base", tmp_path / "lora", {})
    settings = tmp_path / "lora" / "adapter_config.json"
    file = tmp_path / "lora" / "adapter_model.safetensors"
    values, tensors = json.loads(settings.read_text()), load_file(file)
    spoil(values, tensors)
    settings.write_text(json.dumps(values))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        bake(tmp_path / "base", tmp_path / "lora", tmp_path / "out")


def test_extracted_by_the_names_that_peft_knows(tmp_path: Path):
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name or name.endswith("mlp.gate.weight"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    settings = ExtractSettings(rank=16, save_modules=("gate",))
    run_extract(str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "lora", settings)
    found = logits(bake(tmp_path / "base", tmp_path / "lora", tmp_path / "out"))
    torch.testing.assert_close(found, logits(model.eval()), rtol=1e-4, atol=1e-4)
