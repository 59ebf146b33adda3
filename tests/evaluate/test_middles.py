"""Middles of code: where they are cut, and that their loss is the model's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from toolkit.data.config import FimSection
from toolkit.errors import DataError, EvaluationError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.middles import cut_middle, middles_set

FIM = FimSection(tokens=("P", "S", "M"))  # single letters are tokens of the tiny tokenizer


def rows(folder: Path, texts: list[str]) -> Path:
    path = folder / "test.jsonl"
    lines = [
        {"id": f"code/{n}", "group": f"file {n}", "role": "domain", "text": text}
        for n, text in enumerate(texts)
    ]
    lines.append({"id": "web/0", "group": "w", "role": "general", "text": "a\nb\nc\nd\n"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_cuts_are_at_lines_and_lose_nothing():
    text = "".join(f"line {number}\n" for number in range(12))
    cuts = {cut_middle(text, f"document {number}") for number in range(40)}
    assert len(cuts) > 4  # the place depends on the document
    for cut in cuts:
        assert cut is not None
        assert "".join(cut) == text
        assert [part.count("\n") for part in cut][1] == 3  # a quarter of twelve
        assert all(cut)
    assert cut_middle(text, "x") == cut_middle(text, "x")
    assert cut_middle("one\ntwo", "x") is None
    assert cut_middle("one\n\n\n", "x") is None  # nothing but space to fill in


def test_the_loss_is_that_of_the_middle_alone(
    tmp_path: Path, make_model: Callable[..., Path], tiny_tokenizer: Any
):
    model = LlamaForCausalLM.from_pretrained(make_model(tmp_path / "model")).eval()
    path = rows(tmp_path, ["the bank\nreported debt\nin 2020.\n", "too short", "a\nb\nc\n"])
    found = middles_set(path, ["code"], tiny_tokenizer, 0, FIM, EvaluateSection())
    assert list(found.ids) == ["code/0", "code/2"]
    assert list(found.sizes) == [len("reported debt\n"), len("b\n")]
    losses = found.score(model, [0, 1])

    def ids(text: str) -> list[int]:
        return list(tiny_tokenizer(text, add_special_tokens=False)["input_ids"])

    (p,), (s,), (m,) = ids("P"), ids("S"), ids("M")
    middle = ids("reported debt\n")
    prompt = [0, p, *ids("the bank\n"), s, *ids("in 2020.\n"), m]
    with torch.no_grad():
        logs = model(torch.tensor([prompt + middle])).logits.log_softmax(-1)[0]
    by_hand = -sum(float(logs[len(prompt) - 1 + n, token]) for n, token in enumerate(middle))
    assert losses[0] == pytest.approx(by_hand, rel=1e-5)
    assert found.figure(losses[:1], [0]) == pytest.approx(by_hand / math.log(2) / 14, rel=1e-5)


def test_what_has_no_middles(tmp_path: Path, tiny_tokenizer: Any):
    path = rows(tmp_path, ["a\nb\nc\n"])
    with pytest.raises(EvaluationError, match="mark a source of code"):
        middles_set(path, [], tiny_tokenizer, 0, FIM, EvaluateSection())
    with pytest.raises(DataError, match=r"data\.fim"):
        middles_set(path, ["code"], tiny_tokenizer, 0, FimSection(), EvaluateSection())
