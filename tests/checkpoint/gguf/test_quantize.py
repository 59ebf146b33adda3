"""K-quants: the mixtures of llama.cpp, ggml's quantizer, and what its errors are weighed with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.helpers.gguf_models import make_family
from toolkit.checkpoint.gguf import quantize
from toolkit.checkpoint.gguf.compare import compare_gguf
from toolkit.checkpoint.gguf.families import family_of
from toolkit.checkpoint.gguf.importance import measure_importance
from toolkit.checkpoint.gguf.quantize import TensorShape, choose_types, quantize_tensor
from toolkit.checkpoint.gguf.tensors import plan_tensors
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.checkpoint.load import load_causal_model, load_model_config
from toolkit.checkpoint.open import open_checkpoint
from toolkit.errors import CheckpointError

pytest.importorskip("libggml")
LAYERS = {"num_hidden_layers": 8, "model_type": "llama"}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}


def types_of(mixture: str, *names: str, row: int = 256, **config: object) -> dict[str, str]:
    tensors = [TensorShape(f"blk.{n}.attn_v.weight", (64, row)) for n in range(8)]
    tensors += [TensorShape(name, (64, row)) for name in names]
    return choose_types(mixture, tensors, SimpleNamespace(**LAYERS | config))


def test_the_mixture_of_eight_layers():
    # Of 8 layers the first eighth is layer 0, the last 7; every third after the first: 3 and 6.
    found = types_of("Q4_K_M", *(f"blk.{n}.ffn_down.weight" for n in range(8)))
    for part in ("attn_v", "ffn_down"):
        better = [n for n in range(8) if found[f"blk.{n}.{part}.weight"] == "Q6_K"]
        assert better == [0, 3, 6, 7]
        assert found[f"blk.1.{part}.weight"] == "Q4_K"


def test_output_and_embedding():
    embedding, head, norm = (f"{n}.weight" for n in ("token_embd", "output", "output_norm"))
    assert types_of("Q4_K_M", embedding)[embedding] == "Q6_K"  # it is the output as well
    found = types_of("Q4_K_M", embedding, head, norm)
    assert [found[name] for name in (embedding, head, norm)] == ["Q4_K", "Q6_K", "F32"]


def test_eight_experts_keep_more_of_attention():
    names = ("blk.0.attn_k.weight", "blk.0.attn_output.weight", "blk.0.ffn_gate_inp.weight")
    found = types_of("Q4_K_M", *names, num_local_experts=8)
    assert [found[name] for name in names] == ["Q8_0", "Q5_K", "F32"]
    assert found["blk.1.attn_v.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("mixture", "row", "kind"),
    [("Q4_K_M", 576, "Q5_0"), ("Q5_K_M", 576, "Q5_1"), ("Q6_K", 576, "Q8_0"), ("Q6_K", 24, "F16")],
)
def test_rows_that_are_no_multiple_of_256(mixture: str, row: int, kind: str):
    found = types_of(mixture, "token_embd.weight", "blk.1.attn_q.weight", row=row)
    assert found["blk.1.attn_q.weight"] == kind
    assert found["token_embd.weight"] == ("F16" if row % 32 else "Q8_0")


def test_importance_decides_where_the_error_goes():
    generator = np.random.default_rng(0)
    array = generator.normal(size=(64, 256)).astype(np.float32)
    importance = np.ones(256, np.float32)
    importance[::2] = 100.0

    def errors(weights: np.ndarray | None) -> tuple[float, float]:
        data = quantize_tensor(array, "Q4_K", "x", weights)
        back = gguf.dequantize(data, gguf.GGMLQuantizationType.Q4_K)
        squares = np.square(back - array).mean(0)
        return float(squares[::2].mean()), float(squares[1::2].mean())

    plain, weighed = errors(None), errors(importance)
    assert weighed[0] < 0.9 * plain[0]
    assert weighed[1] > plain[1]


def test_importance_is_the_mean_square(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    folder = make_family("llama", tmp_path / "model", tiny_tokenizer)
    config, model = load_model_config(folder), load_causal_model(folder, torch.float32)
    plan = plan_tensors(open_checkpoint(folder), config, family_of(config, folder))
    found = measure_importance(model, [[5, 6, 7], [8, 9]], plan)
    embedded = [model.model.embed_tokens(torch.tensor(t)) for t in ([5, 6, 7], [8, 9])]
    normed = torch.cat([model.model.layers[0].input_layernorm(e) for e in embedded])
    for part in ("q", "k", "v"):
        np.testing.assert_allclose(
            found[f"blk.0.attn_{part}.weight"], normed.square().mean(0).detach(), rtol=1e-5
        )
    assert set(found) == {
        t.name for t in plan if t.name.startswith("blk.") and "norm" not in t.name
    }


def test_each_expert_has_its_own(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    folder = make_family("mixtral", tmp_path / "model", tiny_tokenizer)
    config, model = load_model_config(folder), load_causal_model(folder, torch.float32)
    plan = plan_tensors(open_checkpoint(folder), config, family_of(config, folder))
    found = measure_importance(model, [[5]], plan)
    # One token goes to two of four experts; the others weigh all entries alike.
    for part, size in (("gate", 32), ("up", 32), ("down", 64)):
        rows = found[f"blk.0.ffn_{part}_exps.weight"]
        assert rows.shape == (4, size)
        assert int((rows == 1.0).all(1).sum()) == 2


def test_a_file_of_each_mixture(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    model = make_family("llama", tmp_path / "model", tiny_tokenizer, **WIDE)
    errors = {}
    for kind in ("Q4_K_M", "Q5_K_M", "Q6_K"):
        path = tmp_path / f"{kind}.gguf"
        assert export_gguf(model, path, kind, name="tiny") == []
        errors[kind] = compare_gguf(model, path).relative
    # Half of a step, evenly spread, of 16, 32 and 64 steps over about six deviations.
    assert errors["Q6_K"] < errors["Q5_K_M"] < errors["Q4_K_M"] < 0.1


def test_fallbacks_are_named(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    model = make_family("llama", tmp_path / "model", tiny_tokenizer)
    found = export_gguf(model, tmp_path / "a.gguf", "Q4_K_M", name="tiny")
    assert "blk.0.attn_q.weight: Q5_0" in found
    assert len(found) == 2 * 7 + 2


def test_without_a_quantizer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantize, "_LIBRARIES", ())
    quantize._library.cache_clear()
    with pytest.raises(CheckpointError, match=r"cpt-toolkit\[gguf\]"):
        quantize.check_quantizer()
    quantize._library.cache_clear()
