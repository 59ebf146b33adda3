"""Tokens of requests, and what no model can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection, MultipleChoiceSection
from toolkit.evaluate.lm_eval_model import RequestEncoder
from toolkit.evaluate.tasks import question_sets


def test_blanks_go_to_the_options(tiny_tokenizer):
    encoder = RequestEncoder(tiny_tokenizer)
    pairs = [encoder.encode_pair("net income \n", option) for option in ("in 2019", "debt")]
    assert [tiny_tokenizer.decode(context) for context, _ in pairs] == ["net income"] * 2
    assert [tiny_tokenizer.decode(o) for _, o in pairs] == [" \nin 2019", " \ndebt"]
    assert encoder.encode_pair("", "in 2019")[0] == [tiny_tokenizer.eos_token_id]


def test_a_text_that_begins_already_gets_no_second_beginning(tiny_tokenizer):
    encoder = RequestEncoder(tiny_tokenizer)
    start = tiny_tokenizer.decode([encoder.start_token])
    context, option = encoder.encode_pair(f"{start}debt", f" {start}")
    assert context.count(encoder.start_token) == 1
    assert option.count(encoder.start_token) == 1


def test_damaged_weights_are_no_wrong_answers(model, tiny_tokenizer, question_file: Path):
    section = MultipleChoiceSection(name="mine", files=(str(question_file),))
    (items,) = question_sets(section, tiny_tokenizer, EvaluateSection(), None)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match=r"mine: item questions#000001: .* nan"):
        items.score(model, range(len(items)))


def test_an_option_longer_than_the_model_reads_is_refused(model, tiny_tokenizer, tmp_path: Path):
    path = tmp_path / "q.json"
    path.write_text(
        '[{"question": "a", "choices": ["x", "%s"], "answer": 0}]' % ("debt in 2019, " * 200)
    )
    section = MultipleChoiceSection(name="mine", files=(str(path),))
    (items,) = question_sets(section, tiny_tokenizer, EvaluateSection(), None)
    with pytest.raises(EvaluationError, match="the model reads 256"):
        items.score(model, range(len(items)))
