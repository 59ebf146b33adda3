"""Packed documents do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import CheckpointError, ConfigError
from toolkit.train.layout import segment_positions
from toolkit.train.model import NextTokenLoss, choose_attention, has_plain_head

DOCUMENTS = ([5, 9, 200, 31, 7, 8], [44, 3, 17], [100, 101, 102, 103])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_equal_those_of_the_document_alone(
    tmp_path: Path, make_model: Callable[..., Path], attention: str
):
    folder = make_model(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
    tokens = torch.tensor([[t for document in DOCUMENTS for t in document] + [0, 0]])
    lengths = [len(document) for document in DOCUMENTS]
    segments = torch.tensor([[n for n, k in enumerate(lengths) for _ in range(k)] + [-1, -1]])
    with torch.no_grad():
        packed = model(
            input_ids=tokens,
            position_ids=segment_positions(segments),
            use_cache=False,
        ).logits[0]
        start = 0
        for document in DOCUMENTS:
            alone = model(input_ids=torch.tensor([document])).logits[0]
            assert_close(packed[start : start + len(document)], alone, rtol=1e-5, atol=1e-6)
            start += len(document)


def test_the_fused_head_gives_the_model_s_own_loss(tmp_path: Path, make_model: Callable[..., Path]):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m"))
    module = NextTokenLoss(model, torch.float32)
    assert module.fused_head
    ids = torch.randint(1, 300, (2, 12))
    labels = torch.randint(1, 300, (2, 12))
    labels[0, 3] = -100
    segments = torch.zeros(2, 12, dtype=torch.long)
    fused = module(ids, labels, segments)
    module.fused_head = False
    assert_close(fused, module(ids, labels, segments), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("cap", "is_plain"), [(30.0, False), (None, True)])
def test_a_cap_on_small_logits_is_seen(cap: float | None, is_plain: bool):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=cap,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    assert float(model(input_ids=torch.arange(1, 9)[None]).logits.detach().abs().max()) < 3.0
    assert has_plain_head(model) == is_plain


def test_what_is_no_causal_model_is_refused(tmp_path: Path):
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    BertForSequenceClassification(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="not a causal language model"):
        load_causal_model(tmp_path / "bert", torch.float32)
    with pytest.raises(CheckpointError, match="there is no such model folder"):
        load_causal_model(tmp_path / "nothing", torch.float32)


def _by_lengths(module, query, key, value, attention_mask, scaling=None, **given):
    """Attention as flash-attention's own interface describes it, in plain torch."""
    assert attention_mask is None
    edges = given["cu_seq_lens_q"]
    assert edges.dtype == torch.int32
    assert torch.equal(edges, given["cu_seq_lens_k"])
    assert given["max_length_q"] == int(edges.diff().max())
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling
        )
        for a, b in pairwise(edges.tolist())
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def test_flash_attention_is_told_where_documents_begin(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """Two packed rows with padding: the loss and its gradients are those of sdpa with a mask."""
    folder = make_model(tmp_path / "m")
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1], [0, 0, 1, 1, 2, 2, 2, 2]])
    ids = torch.randint(1, 300, segments.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.where(segments >= 0, ids.roll(-1, dims=1), -100)
    results = []
    for implementation in ("sdpa", "flash_attention_2"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        module = NextTokenLoss(model, torch.float32)
        if implementation != "sdpa":
            monkeypatch.setitem(
                ALL_ATTENTION_FUNCTIONS._global_mapping, implementation, _by_lengths
            )
            model.config._attn_implementation_internal = implementation
        loss = module(ids, labels, segments)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    (masked, grads), (told, others) = results
    assert_close(told, masked, rtol=1e-5, atol=1e-5)
    for one, other in zip(grads, others, strict=True):
        assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_attention_that_is_not_installed_is_said(tmp_path: Path, make_model: Callable[..., Path]):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m"))
    choose_attention(model, "auto", "cpu", "bf16")
    assert model.config._attn_implementation == "sdpa"
    choose_attention(model, "eager", "cpu", "fp32")
    assert model.config._attn_implementation == "eager"
    if not is_flash_attn_2_available():
        with pytest.raises(ConfigError, match="flash_attention_2 cannot be used here"):
            choose_attention(model, "flash_attention_2", "cuda", "bf16")
    with pytest.raises(ConfigError, match=r"needs precision bf16 \(got fp32\)"):
        choose_attention(model, "flash_attention_2", "cuda", "fp32")


def test_auto_takes_flash_attention_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch):
    import transformers.utils

    class Model:
        def set_attn_implementation(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    model = Model()
    choose_attention(model, "auto", "cpu", "bf16")
    choose_attention(model, "auto", "cuda", "fp32")
    assert not hasattr(model, "name")
    choose_attention(model, "auto", "cuda", "bf16")
    assert model.name == "flash_attention_2"
