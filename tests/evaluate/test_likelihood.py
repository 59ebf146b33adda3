"""Losses of documents: each token once, whatever the batching, equal to the model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import ItemSet, load_items, score_documents, windows


def items(lengths: list[int]) -> ItemSet:
    torch.manual_seed(0)
    tokens = [[0, *torch.randint(1, 300, (n,)).tolist()] for n in lengths]
    names = [f"d{n}" for n in range(len(lengths))]
    return ItemSet(names, ["domain"] * len(lengths), [3 * n for n in lengths], tokens)


def reference(model: torch.nn.Module, tokens: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens[:-1]])).logits[0].double()
    picked = logits.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]]
    return -float(picked.sum())


def test_equal_to_the_plain_sum(model):
    documents = items([3, 20, 7, 7, 12])
    scores = score_documents(model, documents, EvaluateSection(window_tokens=64))
    assert scores == pytest.approx([reference(model, t) for t in documents.tokens], rel=1e-5)


def test_batches_change_nothing(model):
    documents = items([3, 20, 7, 7, 12])
    one = EvaluateSection(window_tokens=64, batch_tokens=1)
    many = EvaluateSection(window_tokens=64, batch_tokens=10_000)
    a, b = (score_documents(model, documents, section) for section in (one, many))
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize(("length", "context"), [(4, 1), (4, 3), (7, 2), (50, 1)])
def test_windows_score_every_token_once(length: int, context: int):
    tokens = list(range(20))
    cut = windows(tokens, length, context)
    assert [t for _, targets in cut for t in targets] == tokens[1:]
    for inputs, targets in cut:
        assert len(inputs) <= length
        assert inputs[-1] == targets[-1] - 1  # the last input precedes the last target
    assert all(len(inputs) - len(targets) >= context - 1 for inputs, targets in cut[1:])


def test_windowed_scores_equal_the_windows_scored_alone(model):
    documents = items([30])
    section = EvaluateSection(window_tokens=8, context_tokens=3)
    total = 0.0
    for inputs, targets in windows(documents.tokens[0], 8, 3):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([inputs])).logits[0, -len(targets) :].double()
        total -= float(logits.log_softmax(-1)[range(len(targets)), targets].sum())
    assert score_documents(model, documents, section) == pytest.approx([total], rel=1e-5)


def test_context_must_leave_something_to_score():
    with pytest.raises(ValidationError, match=r"less than window_tokens, 8 \(got 8\)"):
        EvaluateSection(window_tokens=8, context_tokens=8)


def test_damaged_weights_are_noticed(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="d0"):
        score_documents(model, items([3]), EvaluateSection())


def test_items_are_read_with_their_bytes(tmp_path: Path, tiny_tokenizer):
    path = tmp_path / "t.jsonl"
    row = {"id": "a", "role": "general", "group": "g", "text": "net income – 5 %"}
    path.write_text(json.dumps(row) + "\n")
    found = load_items(path, tiny_tokenizer, 0)
    assert found.num_bytes == [len("net income – 5 %".encode())]
    assert found.tokens[0][0] == 0
    assert tiny_tokenizer.decode(found.tokens[0][1:]) == "net income – 5 %"
    path.write_text("")
    with pytest.raises(EvaluationError, match="holds no documents"):
        load_items(path, tiny_tokenizer, 0)
