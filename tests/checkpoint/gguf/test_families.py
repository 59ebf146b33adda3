"""Files of each family, read again by transformers and, where it is installed, by llama.cpp."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers import PreTrainedTokenizerFast

from tests.helpers.gguf_models import FAMILIES, make_family
from toolkit.checkpoint.gguf import families
from toolkit.checkpoint.gguf.compare import compare_gguf
from toolkit.checkpoint.gguf.readers import has_llama_cpp
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.errors import CheckpointError

_ONLY_BY_LLAMA_CPP = ("mixtral", "smollm3", "olmo2", "olmo3", "gemma")
"""Families, or forms of them, that transformers does not read out of GGUF files."""


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_model(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, name: str):
    model = make_family(name, tmp_path / "model", tiny_tokenizer)
    path = tmp_path / "a.gguf"
    export_gguf(model, path, "F32", name="tiny")
    found = compare_gguf(model, path)
    assert found.largest < 1e-6
    assert found.divergence < 1e-9
    assert ("transformers" in found.readers) is (name not in _ONLY_BY_LLAMA_CPP)
    assert ("llama.cpp" in found.readers) is has_llama_cpp()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mistral", {"sliding_window": 16}, r"sliding_window: 16.*with None"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, r"no_rope_layers.*\[1, 1, 1, 0\]"),
        ("qwen2", {"head_dim": 16}, "64, but llama.cpp computes every qwen2 model with 32"),
        ("qwen3", {"attention_bias": True}, "attention_bias: True"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob: False"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar: 16.*with 8"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "layer_types"),
        ("gemma", {"tie_word_embeddings": False}, "lm_head.weight has no place"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings: True"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    name: str,
    changes: dict[str, Any],
    words: str,
):
    model = make_family(name, tmp_path / "model", tiny_tokenizer, **changes)
    with pytest.raises(CheckpointError, match=words):
        export_gguf(model, tmp_path / "a.gguf", "F32", name="tiny")
    assert not list(tmp_path.glob("*.gguf"))


def test_a_family_that_llama_cpp_lacks_is_named(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(FAMILIES, "ministral", ("ministral", {}))
    model = make_family("ministral", tmp_path / "model", tiny_tokenizer)
    with pytest.raises(CheckpointError, match=r"is a 'ministral' model.*known are gemma"):
        export_gguf(model, tmp_path / "a.gguf", "F32", name="tiny")


@pytest.mark.skipif(has_llama_cpp(), reason="llama.cpp tells")
def test_a_family_that_is_not_known_here_needs_llama_cpp(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(FAMILIES, "granite", ("granite", {}))
    model = make_family("granite", tmp_path / "model", tiny_tokenizer)
    path = tmp_path / "a.gguf"
    export_gguf(model, path, "F32", name="tiny")
    with pytest.raises(CheckpointError, match=r"granite.*only llama\.cpp itself could tell"):
        compare_gguf(model, path)


def test_rows_in_another_order_are_seen(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    model = make_family("llama", tmp_path / "model", tiny_tokenizer)
    wrong = dataclasses.replace(families._FAMILIES["llama"], interleaved=False)
    monkeypatch.setitem(families._FAMILIES, "llama", wrong)
    export_gguf(model, tmp_path / "a.gguf", "F32", name="tiny")
    with pytest.raises(CheckpointError, match=r"transformers reads another model\.layers\.0"):
        compare_gguf(model, tmp_path / "a.gguf")


def test_settings_of_gemma(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    model = make_family("gemma3", tmp_path / "model", tiny_tokenizer)
    export_gguf(model, tmp_path / "a.gguf", "F32", name="tiny")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    values = {key: field.contents() for key, field in fields.items()}
    assert values["general.architecture"] == "gemma3"
    assert values["gemma3.attention.sliding_window"] == 16
    assert values["gemma3.rope.freq_base"] == 1e6  # of the layers that see everything
    assert values["gemma3.rope.freq_base_swa"] == 1e4


def test_experts_lie_in_one_tensor(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    model = make_family("mixtral", tmp_path / "model", tiny_tokenizer)
    export_gguf(model, tmp_path / "a.gguf", "BF16", name="tiny")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert tensors["blk.1.ffn_down_exps.weight"].shape.tolist() == [64, 32, 4]
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"
