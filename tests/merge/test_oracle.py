"""Whole merges against mergekit's own, tensor by tensor, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from tests.helpers.mergekit_oracle import both
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge

LAYERS = 3
Make = Callable[[str], Path]


def assert_same(data: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(data, tmp_path)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.fixture
def models(tmp_path: Path, make_model: Callable[..., Path]) -> list[str]:
    return [
        str(make_model(tmp_path / name, seed=seed, num_hidden_layers=LAYERS))
        for seed, name in enumerate("abc")
    ]


def entry(model: str, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "parameters": parameters} if parameters else {"model": model}


def piece(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {**entry(model, **parameters), "layer_range": [start, stop]}


def test_gradients_filters_and_precedence(tmp_path: Path, models: list[str]):
    a, b, c = models
    by_part = [
        {"filter": "mlp", "value": [0.1, 0.7, 0.2]},
        {"filter": "self_attn", "value": [1, 0]},
        {"filter": "*", "value": 0.5},
    ]
    data = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [
            entry(a, weight=by_part),
            entry(b, weight={"filter": "norm", "value": 0.9}),
            entry(c, weight=[0.2, 0.4]),
        ],
        "parameters": {"weight": 0.3, "normalize": [{"filter": "mlp", "value": False}]},
    }
    assert_same(data, tmp_path)


def test_task_arithmetic_bit_for_bit(tmp_path: Path, models: list[str]):
    a, b, c = models
    data = {
        "merge_method": "task_arithmetic",
        "base_model": b,
        "dtype": "float32",
        "models": [entry(a, weight=[0.25, 0.5]), entry(b), entry(c, weight=0.5)],
    }
    assert_same(data, tmp_path)


def test_stacked_layers_bit_for_bit(tmp_path: Path, models: list[str]):
    a, b, _ = models
    data = {
        "merge_method": "passthrough",
        "dtype": "float32",
        "slices": [
            {"sources": [piece(a, 0, 2)]},
            {"sources": [piece(b, 1, 3, scale=[{"filter": "o_proj", "value": 0.0}])]},
            {"sources": [piece(a, 2, 3)], "parameters": {"scale": 0.5}},
        ],
    }
    assert_same(data, tmp_path)


def test_sliced_ties_with_settings_of_slices(tmp_path: Path, models: list[str]):
    a, b, c = models
    data = {
        "merge_method": "ties",
        "base_model": a,
        "dtype": "float32",
        "slices": [
            {"sources": [piece(m, 0, 1) for m in models], "parameters": {"weight": 0.4}},
            {
                "sources": [piece(a, 1, 3), piece(b, 0, 2, weight=0.9), piece(c, 1, 3)],
                "parameters": {"density": [0.3, 0.6]},
            },
        ],
        "parameters": {"weight": 0.7, "density": 0.5},
    }
    assert_same(data, tmp_path)


def test_out_dtype_is_the_one_cast(tmp_path: Path, models: list[str]):
    data = {
        "merge_method": "linear",
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "models": [entry(models[0], weight=0.5), entry(models[1], weight=0.5)],
    }
    assert_same(data, tmp_path)


def test_without_dtype_the_widest_input_counts(
    tmp_path: Path, models: list[str], make_model: Callable[..., Path]
):
    half = make_model(tmp_path / "half", seed=5, num_hidden_layers=LAYERS, dtype=torch.bfloat16)
    data = {
        "merge_method": "linear",
        "models": [entry(str(half), weight=0.5), entry(models[0], weight=0.5)],
    }
    assert_same(data, tmp_path)


def test_modules_as_mergekit_names_them(tmp_path: Path, models: list[str]):
    a, b, _ = models
    part = {
        "slices": [{"sources": [piece(a, 0, 2, weight=1.0), piece(b, 1, 3, weight=3.0)]}],
        "parameters": {"weight": 0.5},
    }
    data = {"merge_method": "linear", "dtype": "float32", "modules": {"default": part}}
    assert_same(data, tmp_path)


def test_a_tied_model_and_one_with_a_head(tmp_path: Path, make_model: Callable[..., Path]):
    tied = make_model(tmp_path / "tied", seed=1)
    untied = make_model(tmp_path / "untied", seed=2, tie_word_embeddings=False)
    for order in ([tied, untied], [untied, tied]):
        out = tmp_path / order[0].name
        out.mkdir(exist_ok=True)
        data = {
            "merge_method": "linear",
            "dtype": "float32",
            "models": [entry(str(folder), weight=0.5) for folder in order],
        }
        assert_same(data, out / "merged")


def _save(kind: type, config: Any, folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")
def test_another_family_of_names(tmp_path: Path):
    config = GPT2Config(
        vocab_size=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    folders = [_save(GPT2LMHeadModel, config, tmp_path / n, s) for s, n in enumerate("ab")]
    data = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [entry(f, weight=w) for f, w in zip(folders, ([0.2, 0.8], 0.5), strict=True)],
    }
    assert_same(data, tmp_path)


def test_experts(tmp_path: Path):
    # mergekit writes experts fused; ours stay as the checkpoints have them, so values are compared.
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
        bos_token_id=0,
        eos_token_id=0,
    )
    folders = [_save(MixtralForCausalLM, config, tmp_path / n, s) for s, n in enumerate("ab")]
    data = {"merge_method": "linear", "models": [entry(f, weight=0.5) for f in folders]}
    run_merge(parse_merge_config(data, where="test"), tmp_path / "out")
    merged, a, b = (
        MixtralForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "out", *folders)
    )
    assert any("experts" in name for name in merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2, rtol=1.2e-7, atol=1e-9)
