"""New tokens: chosen by what they save, and a text is read as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.projects import recipe
from tests.helpers.tiny_runs import make_project, open_run
from toolkit.data.blocks import Blocks
from toolkit.errors import ConfigError
from toolkit.pipeline.models import ensure_cpt, ensure_data, ensure_general
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_merge
from toolkit.stage import read_manifest
from toolkit.train.extend import extend_tokenizer
from toolkit.train.vocabulary import NewTokens, choose_merges

TOKENIZER = {"new_tokens": 24, "min_count": 5}


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, make_model, tie_word_embeddings=False)


def test_worked_example():
    words = {("a", "b", "c"): 6, ("a", "b"): 3, ("b", "c"): 4, ("x", "y"): 5}
    # pairs: ab 9, bc 10, xy 5. bc first, saving 10; then ab has 3 left, a+bc 6, xy 5.
    chosen = choose_merges(words, {"xy"}, num_tokens=9, min_count=4)
    assert chosen.merges == [("b", "c"), ("a", "bc")]  # xy is known, ab is rare
    assert chosen.saved == [10, 6]


def test_a_run_of_equal_pieces_is_joined_from_the_left():
    chosen = choose_merges({("a", "a", "a"): 4}, set(), num_tokens=5, min_count=1)
    assert chosen.merges == [("a", "a"), ("aa", "a")]
    assert chosen.saved == [4, 4]


def test_in_a_run_no_pair_is_counted_twice():
    # 101 pieces hold 100 pairs of neighbors, of which 50 can be joined; the 50 hold 25.
    run = {("a",) * 101: 1}
    assert choose_merges(run, set(), num_tokens=9, min_count=51).merges == []
    assert choose_merges(run, set(), num_tokens=9, min_count=25).saved == [50, 25]


def test_lone_bytes_are_never_joined():
    assert choose_merges({("<0xE2>", "<0x80>"): 99}, set(), 5, 1).merges == []


def test_special_tokens_keep_their_numbers():
    """Llama 3 lists special tokens outside the vocabulary; they would be numbered anew."""
    table = {
        "added_tokens": [{"content": "<s>", "id": 2}],
        "model": {"vocab": {"a": 0, "b": 1}, "merges": ["a a"]},
    }
    extended, first = extend_tokenizer(table, NewTokens([("a", "b")], [1]))
    assert first == 3
    assert extended["model"]["vocab"] == {"a": 0, "b": 1, "<s>": 2, "ab": 3}
    assert extended["model"]["merges"] == ["a a", "a b"]
    assert table["model"]["merges"] == ["a a"]


def test_the_general_model_with_new_tokens(project: Path, capsys: pytest.CaptureFixture[str]):
    run = open_run(project, {"tokenizer": TOKENIZER})
    folder = ensure_general(run)
    assert folder == Path("runs/tiny/general-extended")
    results = read_manifest(folder)["results"]
    assert results["new_tokens"] == 24
    for name in ("train, domain", "validation, domain"):
        row = results["texts"][name]
        assert row["tokens_after"] < 0.9 * row["tokens_before"]
        assert row["bytes_per_token_after"] > row["bytes_per_token_before"]
    assert "24 new tokens" in (folder / "report.md").read_text()
    assert "fewer tokens in the training text" in capsys.readouterr().out

    old, new = (AutoTokenizer.from_pretrained(f) for f in ("model", folder))
    assert len(new) == len(old) + 24
    assert new.chat_template == old.chat_template
    assert new.eos_token_id == old.eos_token_id
    text = (project / "docs/held9.txt").read_text() + " Ünïcode 数字 12 345\n\n  <|end|> x"
    for plain in (text, "", " ", "revenue" * 9):
        ids = new(plain, add_special_tokens=False)["input_ids"]
        assert new.decode(ids) == plain
    assert len(new(text)["input_ids"]) < len(old(text)["input_ids"])

    # A new row is the mean of the rows of its pieces, in and out; old rows are as they were.
    before = load_file("model/model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert set(before) == set(after)
    added = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert after[name].shape[0] == 344
        assert torch.equal(after[name][:320], before[name])
        for token, number in added.items():
            if number >= 320:
                word = new.decode([number])
                pieces = old(word, add_special_tokens=False)["input_ids"]
                assert torch.allclose(after[name][number], before[name][pieces].mean(dim=0)), token
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == 344

    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_general(run) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


def test_padded_rows_are_used_before_new_ones(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, make_model, vocab_size=384)
    folder = ensure_general(open_run(tmp_path, {"tokenizer": TOKENIZER}))
    after = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    before = load_file("model/model.safetensors")["model.embed_tokens.weight"]
    assert after.shape[0] == 384
    assert torch.equal(after[344:], before[344:])
    assert not torch.equal(after[320:344], before[320:344])


def test_the_stages_that_follow_use_the_new_tokens(project: Path):
    changes: dict[str, Any] = {"tokenizer": TOKENIZER, "search": {"merges": ["slerp"]}}
    run = open_run(project, changes)
    merged = ensure_merge(run)
    for folder in (ensure_cpt(run), merged):
        assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 344
        assert len(AutoTokenizer.from_pretrained(folder)) == 344
    data = read_manifest(Path("runs/tiny/data"))["results"]
    without = Run("plain", open_run(project, {}).recipe, Path("runs/plain"))
    plain = read_manifest(ensure_data(without))["results"]
    assert data["train"]["domain_tokens"] < 0.95 * plain["train"]["domain_tokens"]


def test_what_cannot_be_extended_is_said(project: Path):
    with pytest.raises(ConfigError, match=r"tokenizer\.min_count: no new token would save 99999"):
        ensure_general(open_run(project, {"tokenizer": {"new_tokens": 5, "min_count": 99999}}))
    path = project / "model/tokenizer.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "pre_tokenizer": None}))
    with pytest.raises(ConfigError, match="BPE without a pre-tokenizer; only byte-pair"):
        ensure_general(open_run(project, {"tokenizer": TOKENIZER}))
    path.unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        ensure_general(open_run(project, {"tokenizer": TOKENIZER}))


def test_special_tokens_are_added_by_name(project: Path):
    """They have the mean of their pieces, never come out of text, and rearrange documents."""
    names = ["<PRE>", "<SUF>", "<MID>"]
    data = recipe()["data"]
    data["sources"]["docs"]["fim"] = True
    run = open_run(
        project,
        {"tokenizer": {"special_tokens": names}, "data": {**data, "fim": {"tokens": names}}},
    )
    extended = ensure_general(run)
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in ("model", extended))
    ids = new.convert_tokens_to_ids(names)
    assert ids == [320, 321, 322]
    assert (
        new("the board<PRE>", split_special_tokens=True)["input_ids"]
        == (old("the board<PRE>")["input_ids"])
    )
    assert new("the board<PRE>")["input_ids"][-1] == 320
    before = AutoModelForCausalLM.from_pretrained("model")
    after = AutoModelForCausalLM.from_pretrained(extended)
    for side in ("get_input_embeddings", "get_output_embeddings"):
        was, now = (getattr(model, side)().weight for model in (before, after))
        pieces = old("<MID>")["input_ids"]
        assert len(pieces) > 1
        assert torch.equal(now[:320], was)
        assert torch.allclose(now[322], was[pieces].mean(dim=0))
    data_folder = ensure_data(run)
    blocks = Blocks.open(data_folder)
    (stage,) = blocks.stages
    tokens = stage.read(range(stage.num_positions)).input_ids
    assert (tokens == 320).sum() == (tokens == 322).sum() > 0
    assert read_manifest(extended)["results"]["special"] == names

    again = open_run(
        project, {"model": {"path": str(extended)}, "tokenizer": {"special_tokens": names}}
    )
    with pytest.raises(ConfigError, match=r"tokenizer\.special_tokens: .* has '<PRE>' already"):
        ensure_general(again)


def test_a_name_that_the_tokenizer_reads_nothing_in(project: Path):
    path = project / "model/tokenizer.json"
    table = json.loads(path.read_text())
    left_out = {"type": "Replace", "pattern": {"String": "<GONE>"}, "content": ""}
    path.write_text(json.dumps({**table, "normalizer": left_out}))
    run = open_run(project, {"tokenizer": {"special_tokens": ["<MID>", "<GONE>"]}})
    with pytest.raises(ConfigError, match=r"tokenizer\.special_tokens: .* nothing in '<GONE>'"):
        ensure_general(run)


def test_a_sample_of_less_than_ten_characters(project: Path):
    run = open_run(project, {"tokenizer": {**TOKENIZER, "sample_characters": 9}})
    assert (ensure_general(run) / "tokenizer.json").is_file()


TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


def test_a_chat_template_for_a_model_that_has_none(project: Path):
    settings = project / "model/tokenizer_config.json"
    values = json.loads(settings.read_text())
    for where in (None, "an old one {{ x }}"):
        (project / "model/chat_template.jinja").unlink(missing_ok=True)
        settings.write_text(json.dumps({**values, **({"chat_template": where} if where else {})}))
        folder = ensure_general(open_run(project, {"tokenizer": {"chat_template": TEMPLATE}}))
        new = AutoTokenizer.from_pretrained(folder)
        talk = [{"role": "user", "content": "hello"}]
        assert new.apply_chat_template(talk, tokenize=False) == "[user] hello\n"
        assert len(new) == 320
        before, after = (load_file(f"{f}/model.safetensors") for f in ("model", folder))
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"chat_template": "chatml"}, "chat_template: must be a template in Jinja"),
        ({}, "give new_tokens, special_tokens, chat_template, or several of them"),
    ],
)
def test_bad_sections(project: Path, section: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        open_run(project, {"tokenizer": section})


def test_a_template_that_is_none(project: Path):
    run = open_run(project, {"tokenizer": {"chat_template": "{% for x in %}"}})
    with pytest.raises(ConfigError, match=r"tokenizer\.chat_template: is no template"):
        ensure_general(run)
