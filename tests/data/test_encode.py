"""Tokens of plain text, of code with a hole in it, and of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.data.config import FimSection
from toolkit.data.encode import Encoder, find_fim_tokens
from toolkit.data.sources import Document
from toolkit.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer) -> Path:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_plain_text_is_what_the_tokenizer_says(folder: Path, tiny_tokenizer):
    text = "the company reported revenue in 2020."
    (plain,) = Encoder(folder, 0).encode([Document("s/1", "s", "g", text)])
    assert plain.tokens == tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert plain.targets is None


def test_text_that_looks_like_a_special_token_stays_text(folder: Path, tiny_tokenizer):
    text = "ends with <|end|> here"
    (plain,) = Encoder(folder, 0).encode([Document("s/1", "s", "g", text)])
    assert tiny_tokenizer.eos_token_id not in plain.tokens
    assert tiny_tokenizer.decode(plain.tokens) == text


def test_fill_in_the_middle_keeps_every_character(folder: Path, tiny_tokenizer):
    section = FimSection(rate=0.7, spm_fraction=0.5)
    encoder = Encoder(folder, 3, section, (900, 901, 902))
    texts = [f"def f{n}(x):\n    return x + {n}\n" for n in range(200)]
    documents = [Document(f"s/{n}", "s", "g", text) for n, text in enumerate(texts)]
    plain = psm = spm = 0
    for item, text in zip(encoder.encode(documents), texts, strict=True):
        if 900 not in item.tokens:
            plain += 1
            assert tiny_tokenizer.decode(item.tokens) == text
            continue
        suffix_at, middle_at = item.tokens.index(901), item.tokens.index(902)
        parts = [item.tokens[1:suffix_at], item.tokens[suffix_at + 1 : middle_at]]
        prefix, suffix, rest = (
            tiny_tokenizer.decode(part) for part in (*parts, item.tokens[middle_at + 1 :])
        )
        if suffix_at == 1:  # prefix id, suffix id, suffix, middle id, prefix and middle
            spm += 1
            assert rest + suffix == text
        else:
            psm += 1
            assert prefix + rest + suffix == text
    assert abs(plain / 200 - 0.3) < 0.1
    assert abs(spm / (psm + spm) - 0.5) < 0.15
    again = [item.tokens for item in encoder.encode(documents[::-1])][::-1]
    assert again == [item.tokens for item in encoder.encode(documents)]


def test_tokens_for_the_middle_are_looked_for(tiny_tokenizer):
    vocabulary = {"<fim_prefix>": 5, "<fim_suffix>": 7, "<fim_middle>": 6, "<a>": 1, "<b>": 2}
    known = SimpleNamespace(get_vocab=lambda: vocabulary)
    assert find_fim_tokens(FimSection(), known) == (5, 7, 6)
    with pytest.raises(DataError, match=r"data\.fim\.tokens"):
        find_fim_tokens(FimSection(tokens=("<a>", "<b>", "<c>")), known)
    with pytest.raises(DataError, match="none of the tokens"):
        find_fim_tokens(FimSection(), tiny_tokenizer)


def test_only_the_assistant_s_words_are_targets(folder: Path, tiny_tokenizer):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what is debt"},
        {"role": "assistant", "content": "net income reduced"},
        {"role": "user", "content": "net income reduced"},  # the same words, not to be learned
        {"role": "assistant", "content": "inventory"},
    ]
    (item,) = Encoder(folder, 0).encode([Document("s/1", "s", "g", "…", json.dumps(messages))])
    assert item.targets is not None
    whole = tiny_tokenizer.decode(item.tokens)
    assert whole == tiny_tokenizer.apply_chat_template(messages, tokenize=False)
    learned = [t for t, wanted in zip(item.tokens, item.targets, strict=True) if wanted]
    text = tiny_tokenizer.decode(learned)
    assert text.count("net income reduced") == 1
    assert "inventory" in text
    assert "be brief" not in text
    assert "what is debt" not in text
