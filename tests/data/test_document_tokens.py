"""Documents begin with BOS where the tokenizer puts it, in training and in scoring alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers.corpora import section, write_corpus
from toolkit.data.blocks import Blocks
from toolkit.data.document_tokens import document_tokens, leading_token
from toolkit.data.encode import TextTokenizer
from toolkit.data.run import run_data
from toolkit.evaluate.likelihood import load_items
from toolkit.stage import Stage, read_manifest

BOS, END = "<bos>", "<|end|>"


@pytest.fixture
def bos_tokenizer(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """As Gemma's and Llama's: BOS before every text, another token at its end."""
    core = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    core.add_special_tokens([BOS])
    number = core.token_to_id(BOS)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, number)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=END)
    tokenizer.save_pretrained(tmp_path / "bos")
    return tmp_path / "bos"


def test_the_token_before_every_text(bos_tokenizer: Path, tmp_path: Path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "none")
    for folder, expected in ((bos_tokenizer, 320), (tmp_path / "none", None)):
        assert leading_token(AutoTokenizer.from_pretrained(folder)) == expected
        assert TextTokenizer(folder).leading_token == expected


def test_add_bos_token_in_the_settings_counts(bos_tokenizer: Path):
    path = bos_tokenizer / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "add_bos_token": False}))
    expected = leading_token(AutoTokenizer.from_pretrained(bos_tokenizer))
    assert TextTokenizer(bos_tokenizer).leading_token == expected


def test_signs_of_special_tokens_are_text_in_scoring(bos_tokenizer: Path):
    tokenizer = AutoTokenizer.from_pretrained(bos_tokenizer)
    text = f"a sign {END} in a manual"
    (tokens,) = document_tokens(tokenizer, [text], 0)
    assert tokens[0] == 320
    assert 0 not in tokens
    assert tokenizer.decode(tokens[1:]) == text


def test_training_and_scoring_begin_alike(bos_tokenizer: Path, tmp_path: Path):
    write_corpus(tmp_path, 20)
    stage = Stage(tmp_path / "data", {}, {}, 0)
    run_data(section(tmp_path), stage, bos_tokenizer, lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(bos_tokenizer)
    blocks = Blocks.open(tmp_path / "data")
    batch = blocks.stages[0].read(range(blocks.stages[0].num_positions))
    starts = 0
    for inputs, labels, segments in zip(batch.input_ids, batch.labels, batch.segments, strict=True):
        for number in range(int(segments.max()) + 1):
            own, following = inputs[segments == number], labels[segments == number]
            assert 320 not in following
            assert 0 not in own
            starts += int(own[0] == 320)
            assert 320 not in own[1:]
    assert starts == sum(
        line.split(",")[3] == "train"
        for line in (tmp_path / "data" / "documents.csv").read_text().splitlines()
    )
    separator = read_manifest(tmp_path / "data")["results"]["separator_token_id"]
    items = load_items(tmp_path / "data" / "test.jsonl", tokenizer, separator)
    rows = (tmp_path / "data" / "test.jsonl").read_text().splitlines()
    assert items.tokens == [tokenizer(json.loads(row)["text"])["input_ids"] for row in rows]
