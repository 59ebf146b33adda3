"""Filling in the middle: which lines, behind what, and the exact loss of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project, open_run
from toolkit.errors import DataError, EvaluationError
from toolkit.evaluate.config import EvaluateSection, InfillingSection
from toolkit.evaluate.middles import BOTH_SIDES, PREFIX_ONLY, cut_middles, middles_sets
from toolkit.pipeline.infill import measure_infilling

TEXT = "".join(f"the bank reported debt in {year}.\n" for year in range(2015, 2023))
TOKENS = ("<|a|>", "<|b|>", "<|end|>")


def write(folder: Path, *texts: str) -> Path:
    rows = [
        {"id": f"docs/{n}", "role": "domain", "group": f"g{n}", "text": text}
        for n, text in enumerate(texts)
    ]
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path, make_model: Callable[..., Path]) -> Any:
    found = AutoTokenizer.from_pretrained(make_model(tmp_path / "model", vocab_size=322))
    found.add_special_tokens({"additional_special_tokens": list(TOKENS[:2])})
    return found


def test_middles_are_whole_lines_with_something_on_both_sides():
    wanted = InfillingSection(per_document=3, lines=2)
    found = cut_middles({"id": "x", "text": TEXT}, wanted)
    assert len(found) == 3
    for middle in found:
        assert middle.prefix + middle.text + middle.suffix == TEXT
        assert middle.prefix.endswith("\n")
        assert middle.suffix
        assert middle.text.count("\n") == 2
    assert [m.id for m in cut_middles({"id": "x", "text": TEXT}, wanted)] == [m.id for m in found]
    assert cut_middles({"id": "x", "text": "one\ntwo\nthree\n"}, wanted) == []
    assert cut_middles({"id": "x", "text": "one\n\n\nfour\n"}, wanted) == []


def test_the_loss_is_that_of_the_middle_alone(tmp_path: Path, tokenizer: Any):
    """By hand: the tokens of the middle, after <PRE> prefix <SUF> suffix <MID>."""
    path = write(tmp_path, TEXT, "no lines here")
    wanted = InfillingSection(per_document=1, tokens=TOKENS)
    both, alone = middles_sets(path, tokenizer, EvaluateSection(window_tokens=2000), wanted)
    assert (both.name, alone.name) == (BOTH_SIDES, PREFIX_ONLY)
    (middle,) = cut_middles({"id": "docs/0", "group": "g0", "text": TEXT}, wanted)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    pre, suf, mid = tokenizer.convert_tokens_to_ids(list(TOKENS))
    inner = ids(middle.text)
    for items, prompt in (
        (both, [pre, *ids(middle.prefix), suf, *ids(middle.suffix), mid]),
        (alone, ids(middle.prefix)),
    ):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *inner]])).logits[0].log_softmax(-1)
        rows = range(len(prompt) - 1, len(prompt) + len(inner) - 1)
        by_hand = -sum(float(logits[row, token]) for row, token in zip(rows, inner, strict=True))
        assert items.score(model, [0]) == pytest.approx([by_hand], rel=1e-4)
        assert list(items.sizes) == [len(middle.text.encode())]


def test_middles_of_one_document_are_drawn_together(tmp_path: Path, tokenizer: Any):
    rows = [{"id": f"docs/{n}", "role": "domain", "group": "one", "text": TEXT} for n in range(3)]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = InfillingSection(per_document=2, tokens=TOKENS)
    for items in middles_sets(path, tokenizer, EvaluateSection(), wanted):
        assert items.groups == ["docs/0", "docs/0", "docs/1", "docs/1", "docs/2", "docs/2"]
        assert items.is_of_one_group
        assert items.note.startswith("its 3 documents come from one group (one): intervals hold")
    path.write_text(json.dumps(rows[0]) + "\n")
    for items in middles_sets(path, tokenizer, EvaluateSection(), wanted):
        assert (len(items), items.num_groups) == (2, 1)


def test_long_sides_are_cut_towards_the_middle(tmp_path: Path, tokenizer: Any):
    path, wanted = write(tmp_path, TEXT), InfillingSection(per_document=9, tokens=TOKENS)
    for items in middles_sets(path, tokenizer, EvaluateSection(window_tokens=64), wanted):
        assert max(items.costs) <= 64


def test_faults_say_what_is_missing(tmp_path: Path, tokenizer: Any):
    section = EvaluateSection()
    with pytest.raises(DataError, match=r"data\.fim: the tokenizer has none of the tokens"):
        middles_sets(write(tmp_path, TEXT), tokenizer, section, InfillingSection())
    with pytest.raises(EvaluationError, match="no document has 4 lines"):
        middles_sets(write(tmp_path, "a\nb\n"), tokenizer, section, InfillingSection(tokens=TOKENS))


def test_training_on_rearranged_documents_fills_in_better(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(make_project(tmp_path, make_model))
    for path in (tmp_path / "docs").glob("*.txt"):
        path.write_text(path.read_text().replace(". ", ".\n"))
    names = ["<PRE>", "<SUF>", "<MID>"]
    data = recipe()["data"]
    data["sources"]["docs"]["fim"] = True
    data["cleaning"]["collapse_spaces"] = False
    changes = {
        "tokenizer": {"special_tokens": names},
        "data": {**data, "fim": {"tokens": names}},
        "evaluate": {
            "window_tokens": 128,
            "bootstrap_resamples": 500,
            "infilling": {"tokens": names},
        },
        "train": {"epochs": 4},
    }
    run = open_run(tmp_path, changes)
    figures = measure_infilling(run)["tasks"][BOTH_SIDES]
    (pair,) = figures["pairs"]
    assert (pair["from"], pair["to"]) == ("general", "specialist")
    assert pair["difference"]["high"] < 0.0
    assert json.loads((run.root / "infilling.json").read_text())["tasks"][PREFIX_ONLY]["num_items"]
