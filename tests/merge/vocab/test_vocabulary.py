"""Models with different vocabularies: rows by token, against mergekit's and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import paragraph
from tests.helpers.mergekit_oracle import both
from toolkit.diagnose.measure import measure
from toolkit.diagnose.subjects import open_subjects
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.describe import describe_merge
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.to_disk import run_merge

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXTS = (
    "The company reported revenue in 2021.",
    "naïve — 日本 <|call|>x<|end|>",
    "  two  spaces\n",
)


@pytest.fixture
def pair(tmp_path: Path, make_model: Callable[..., Path]) -> tuple[Path, Path]:
    """Two models: the second has other words, one more special token, and eight padding rows."""
    first = make_model(tmp_path / "first", seed=0)
    second = make_model(tmp_path / "second", seed=1, vocab_size=318, tie_word_embeddings=True)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=["<|call|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([paragraph(seed).upper() for seed in range(40)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": "<|end|>"})
    tokenizer.save_pretrained(second)
    return first, second


def linear(pair: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [
            {"model": str(pair[0]), "parameters": {"weight": 0.25}},
            {"model": str(pair[1]), "parameters": {"weight": 0.75}},
        ],
        **changes,
    }


def merge(data: dict[str, Any], out: Path) -> dict[str, Tensor]:
    run_merge(parse_merge_config(data, where="t"), out)
    return load_file(out / "model.safetensors")


def ids(folder: Path) -> dict[str, int]:
    found: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return found


@pytest.mark.parametrize("source", ["union", "base", "second"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_rows_are_those_of_mergekit(
    pair: tuple[Path, Path], tmp_path: Path, source: str, method: str
):
    if source == "base" and method == "linear":
        pytest.skip("linear takes no base model")
    data = linear(pair, merge_method=method)
    data["tokenizer_source"] = str(pair[1]) if source == "second" else source
    if method == "task_arithmetic":
        data["base_model"] = str(pair[0])
    ours, theirs = both(data, tmp_path)
    assert set(ours) == set(theirs)
    our_ids, their_ids = ids(tmp_path / "ours"), ids(tmp_path / "theirs")
    assert set(our_ids) == set(their_ids)
    for token, number in our_ids.items():
        row, expected = ours[EMBEDDING][number], theirs[EMBEDDING][their_ids[token]]
        assert torch.allclose(row, expected, atol=1e-7), token
    for name in set(ours) - {EMBEDDING}:
        assert torch.allclose(ours[name], theirs[name], atol=1e-7), name


def test_the_union_by_hand(pair: tuple[Path, Path], tmp_path: Path):
    merged = merge(linear(pair, tokenizer_source="union"), tmp_path / "out")
    a, b = (load_file(folder / "model.safetensors")[EMBEDDING] for folder in pair)
    first, second, united = ids(pair[0]), ids(pair[1]), ids(tmp_path / "out")
    assert {token: united[token] for token in first} == first  # the first model's ids stay
    assert set(united) == set(first) | set(second)
    assert merged[EMBEDDING].shape[0] == len(united)
    for token, number in united.items():
        one = a[first[token]] if token in first else b[second[token]]
        other = b[second[token]] if token in second else a[first[token]]
        assert torch.allclose(merged[EMBEDDING][number], 0.25 * one + 0.75 * other, atol=1e-7)


def test_the_merged_model_runs_and_its_tokenizer_round_trips(
    pair: tuple[Path, Path], tmp_path: Path
):
    merge(linear(pair, tokenizer_source="union"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer) == model.lm_head.weight.shape[0]
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>") == 0
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt")
        assert tokenizer.decode(encoded["input_ids"][0]) == text
        answer = model.generate(**encoded, max_new_tokens=3, do_sample=False)
        assert answer.shape[1] > encoded["input_ids"].shape[1]
    assert tokenizer.convert_tokens_to_ids("<|call|>") in tokenizer("<|call|>")["input_ids"]


def test_a_head_of_its_own_gets_rows_of_heads(
    tmp_path: Path, pair: tuple[Path, Path], make_model: Callable[..., Path]
):
    """The first model shares its embedding with its head, the second has both."""
    second = pair[1]
    tokenizer = AutoTokenizer.from_pretrained(second)
    untied = make_model(tmp_path / "untied", seed=2, vocab_size=318, tie_word_embeddings=False)
    tokenizer.save_pretrained(untied)
    merged = merge(linear((pair[0], untied), tokenizer_source="union"), tmp_path / "out")
    a, b = load_file(pair[0] / "model.safetensors"), load_file(untied / "model.safetensors")
    first, united = ids(pair[0]), ids(tmp_path / "out")
    call, end = united["<|call|>"], united["<|end|>"]
    own = ids(untied)
    assert torch.allclose(merged[HEAD][call], b[HEAD][own["<|call|>"]], atol=1e-7)
    assert torch.allclose(merged[EMBEDDING][call], b[EMBEDDING][own["<|call|>"]], atol=1e-7)
    expected = 0.25 * a[EMBEDDING][first["<|end|>"]] + 0.75 * b[HEAD][own["<|end|>"]]
    assert torch.allclose(merged[HEAD][end], expected, atol=1e-7)
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )


def test_tokens_one_by_one(pair: tuple[Path, Path], tmp_path: Path):
    second = pair[1]
    section = {
        "source": "union",
        "tokens": {
            "<|call|>": {"source": {"kind": "zero"}},
            "<|new|>": {"source": {"kind": "model_token", "model": str(second), "token_id": 5}},
            "<|end|>": {"source": str(second), "force": True},
        },
        "pad_to_multiple_of": 64,
    }
    merged = merge(linear(pair, tokenizer=section), tmp_path / "out")
    b = load_file(second / "model.safetensors")[EMBEDDING]
    united, own = ids(tmp_path / "out"), ids(second)
    rows = merged[EMBEDDING]
    assert rows.shape[0] % 64 == 0
    assert rows.shape[0] - 64 < len(united) < rows.shape[0]
    # Only the first model lacks the token; the second's row is its own, and counts 0.75.
    assert torch.allclose(rows[united["<|call|>"]], 0.75 * b[own["<|call|>"]], atol=1e-7)
    assert torch.allclose(rows[united["<|new|>"]], b[5], atol=1e-7)
    assert torch.allclose(rows[united["<|end|>"]], b[own["<|end|>"]], atol=1e-7)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == rows.shape[0]


def test_one_vocabulary_is_merged_as_it_stands(
    pair: tuple[Path, Path], tmp_path: Path, make_model: Callable[..., Path]
):
    """Padding rows stay, and the result is bit for bit that without a tokenizer_source."""
    padded = [make_model(tmp_path / n, seed=s, vocab_size=336) for s, n in enumerate("pq")]
    asked = merge(linear((padded[0], padded[1]), tokenizer_source="union"), tmp_path / "x")
    plain = merge(linear((padded[0], padded[1])), tmp_path / "y")
    assert asked[EMBEDDING].shape[0] == 336
    assert all(torch.equal(asked[name], plain[name]) for name in plain)


def test_kernels_and_definition_agree_on_gathered_rows(pair: tuple[Path, Path], tmp_path: Path):
    data = linear(pair, tokenizer_source="union", merge_method="ties", base_model=str(pair[0]))
    for item in data["models"]:
        item["parameters"]["density"] = 0.5
    by_kernel = merge(data, tmp_path / "kernel")
    run_merge(parse_merge_config(data, where="t"), tmp_path / "torch", allow_non_finite=True)
    by_torch = load_file(tmp_path / "torch" / "model.safetensors")
    assert all(torch.equal(by_kernel[name], by_torch[name]) for name in by_torch)


def test_the_plan_says_it(pair: tuple[Path, Path]):
    text = describe_merge(parse_merge_config(linear(pair, tokenizer_source="union"), where="t"))
    assert f"vocabulary of {pair[0]}: 320 tokens" in text
    assert f"from {pair[1]}: '<|call|>'" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "318"),
        ({"tokenizer": {"tokens": {"<|cal|>": {}}}}, "did you mean <|call|>"),
    ],
)
def test_what_cannot_be_is_said(
    pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], words: str
):
    with pytest.raises((MergeError, ConfigError)) as caught:
        merge(linear(pair, **changes), tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_file_to_blame_is_that_of_the_model_a_row_was_taken_from(
    pair: tuple[Path, Path], tmp_path: Path
):
    file = pair[1] / "model.safetensors"
    state = load_file(file)
    state[EMBEDDING][ids(pair[1])["<|call|>"]] = torch.nan
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"NaN or infinity in .*second/model\.safetensors"):
        merge(linear(pair, tokenizer_source="union"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_diagnosis_compares_rows_by_token(pair: tuple[Path, Path], tmp_path: Path):
    merge(linear(pair, tokenizer_source="union"), tmp_path / "out")
    workers = WorkerThreads(1)
    subjects = open_subjects(tmp_path / "out", (), None, workers)
    measured = measure(subjects, workers)
    assert subjects.note is None
    assert not measured.left_out
    assert (None, 0, "embedding") in measured.groups


def test_a_token_without_a_row_is_left_out_and_said(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = pair[1] / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["far"] = 400
    path.write_text(json.dumps(values))
    merge(linear(pair, tokenizer_source="union"), tmp_path / "out")
    assert "1 tokens beyond the 318 rows" in capsys.readouterr().err
    united = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert "far" not in united


@pytest.mark.parametrize("source", ["base", "union"])
def test_what_is_left_out_of_a_tokenizer_does_not_come_back_when_it_is_loaded(
    pair: tuple[Path, Path], tmp_path: Path, source: str
):
    # The owner's own token beyond its rows is its padding: named as such beside tokenizer.json.
    path = pair[0] / "tokenizer.json"
    values = json.loads(path.read_text())
    rows = json.loads((pair[0] / "config.json").read_text())["vocab_size"]
    token = {**values["added_tokens"][0], "id": rows, "content": "[OWNPAD]"}
    values["added_tokens"].append(token)
    path.write_text(json.dumps(values))
    flags = {key: value for key, value in token.items() if key != "id"}
    for name, changes in {
        "tokenizer_config.json": {
            "pad_token": "[OWNPAD]",
            "extra_special_tokens": ["[OWNPAD]"],
            "added_tokens_decoder": {str(rows): flags},
        },
        "special_tokens_map.json": {"pad_token": flags},
        "generation_config.json": {"pad_token_id": rows},
        "config.json": {"pad_token_id": rows},
    }.items():
        file = pair[0] / name
        before = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**before, **changes}))
    data = linear(pair, merge_method="task_arithmetic", base_model=str(pair[0]))
    merged = merge({**data, "tokenizer_source": source}, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "[OWNPAD]" not in tokenizer.get_vocab()
    assert max(tokenizer.get_vocab().values()) < len(merged[EMBEDDING])
    assert "OWNPAD" not in "".join(f.read_text() for f in (tmp_path / "out").glob("*.json"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["pad_token_id"] is None
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_truncation_does_not_leave_a_token_without_its_row(pair: tuple[Path, Path], tmp_path: Path):
    long, short = pair[1], pair[0]
    rows = json.loads((short / "config.json").read_text())["vocab_size"]
    path = long / "tokenizer.json"
    values = json.loads(path.read_text())
    token = {**values["added_tokens"][0], "id": rows, "content": "[PAD]"}
    values["added_tokens"].append(token)
    path.write_text(json.dumps(values))
    model = AutoModelForCausalLM.from_pretrained(long)
    model.resize_token_embeddings(rows + 8)
    model.config.pad_token_id = rows
    model.save_pretrained(long)
    data = linear((long, short))
    config = parse_merge_config(data, where="t")
    with pytest.raises(MergeError, match=rf"1 tokens beyond the {rows} rows .* '\[PAD\]'"):
        run_merge(config, tmp_path / "no", truncate_embeddings=True)
    config = parse_merge_config({**data, "tokenizer_source": "base"}, where="t")
    run_merge(config, tmp_path / "out", truncate_embeddings=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size
    assert model.config.pad_token_id is None


def test_tokenizers_of_different_kinds_are_refused(pair: tuple[Path, Path], tmp_path: Path):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(pair[1])
    with pytest.raises(MergeError, match="different kinds"):
        merge(linear(pair, tokenizer_source="union"), tmp_path / "out")
