"""Packed documents do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import CheckpointError
from toolkit.train.model import NextTokenLoss, segment_mask, segment_positions

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
    dtype = torch.float32 if attention == "eager" else torch.bool
    with torch.no_grad():
        packed = model(
            input_ids=tokens,
            attention_mask=segment_mask(segments, dtype),
            position_ids=segment_positions(segments),
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


def test_what_is_no_causal_model_is_refused(tmp_path: Path):
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    BertForSequenceClassification(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="not a causal language model"):
        load_causal_model(tmp_path / "bert", torch.float32)
    with pytest.raises(CheckpointError, match="no model configuration"):
        load_causal_model(tmp_path / "nothing", torch.float32)
