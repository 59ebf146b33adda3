"""Tokens of plain text, of code with a hole in it, and of conversations."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from toolkit.data import encode
from toolkit.data.backend import Backend
from toolkit.data.chunks import can_cut
from toolkit.data.config import FimSection
from toolkit.data.encode import (
    Encoder,
    TextTokenizer,
    find_fim_tokens,
    find_separator,
)
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
    section = FimSection(rate=0.7, spm_rate=0.5)
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


def test_long_documents_are_rearranged_piece_by_piece(folder: Path, tiny_tokenizer):
    """Each piece is a prefix, its suffix and its middle; their order is the document's."""
    text = "".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(40))
    section = FimSection(rate=1.0, spm_rate=0.0, piece_characters=60)
    ids = (1001, 1002, 1003)
    (encoded,) = Encoder(folder, 0, section, ids).encode([Document("a", "", "g", text)])
    starts = [n for n, token in enumerate(encoded.tokens) if token == 1001]
    assert 10 < len(starts) < 40
    found = ""
    for start, stop in zip(starts, [*starts[1:], len(encoded.tokens)], strict=True):
        piece = encoded.tokens[start:stop]
        suffix, middle = piece.index(1002), piece.index(1003)
        parts = (piece[1:suffix], piece[middle + 1 :], piece[suffix + 1 : middle])
        whole = "".join(tiny_tokenizer.decode(part) for part in parts)
        assert whole.endswith("\n")
        found += whole
    assert found == text


def test_tokens_for_the_middle_are_looked_for(tiny_tokenizer):
    vocabulary = {"<fim_prefix>": 5, "<fim_suffix>": 7, "<fim_middle>": 6, "<a>": 1, "<b>": 2}
    assert find_fim_tokens(FimSection(), vocabulary) == (5, 7, 6)
    with pytest.raises(DataError, match=r"data\.fim\.tokens"):
        find_fim_tokens(FimSection(tokens=("<a>", "<b>", "<c>")), vocabulary)
    with pytest.raises(DataError, match="none of the tokens"):
        find_fim_tokens(FimSection(), tiny_tokenizer.get_vocab())


def test_the_separator_must_be_in_the_vocabulary(folder: Path, tiny_tokenizer):
    tokenizer = TextTokenizer(folder)
    assert find_separator(None, tokenizer) == tiny_tokenizer.eos_token_id
    assert len(tokenizer) == len(tiny_tokenizer)
    with pytest.raises(
        DataError, match=r"no token '<x>'; its end-of-sequence token is '<\|end\|>'"
    ):
        find_separator("<x>", tokenizer)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has no end-of-sequence token"):
        find_separator(None, TextTokenizer(folder))


def test_a_folder_without_a_readable_tokenizer_is_named(folder: Path):
    for content in ('{"oops', "{}"):
        (folder / "tokenizer.json").write_text(content)
        encode._backend_at.cache_clear()
        with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
            TextTokenizer(folder)
    (folder / "tokenizer.json").unlink()
    encode._backend_at.cache_clear()
    with pytest.raises(DataError, match=r"holds no tokenizer that can be read .*tokenizer\.json"):
        TextTokenizer(folder)


_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    name: rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_REST}"
    for name, digits in (("llama3", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"), ("own", r"\p{N}{2}|\p{N}"))
}


@pytest.mark.parametrize("pattern", [None, "digits", *_PATTERNS])
def test_words_looked_up_are_words_encoded(tmp_path: Path, tiny_tokenizer, pattern: str | None):
    from tokenizers import Regex, pre_tokenizers

    tiny_tokenizer.save_pretrained(tmp_path)
    if pattern:
        table = json.loads((tmp_path / "tokenizer.json").read_text())
        split = (
            pre_tokenizers.Digits(individual_digits=True)
            if pattern == "digits"
            else pre_tokenizers.Split(Regex(_PATTERNS[pattern]), "isolated")
        )
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "digits")
        from tokenizers import Tokenizer

        core = Tokenizer.from_str(json.dumps(table))
        core.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        core.save(str(tmp_path / "tokenizer.json"))
    backend = Backend(tmp_path / "tokenizer.json")
    assert backend.cuts_at_spaces
    assert backend.cuts_words is (pattern != "own")  # patterns not known are not cut further
    chance = random.Random(1)  # noqa: S311
    signs = " \n\t\r\u00a0\u3000\u200bab9.,'\"é̈ 你🙂s'll \x1c\x85<|end|>"
    texts = ["".join(chance.choice(signs) for _ in range(80)) for _ in range(400)]
    plain = "".join(map(chr, range(33, 127))) + "abcxyz0123456789.,()-/'  " * 3
    texts += ["".join(chance.choice(plain) for _ in range(80)) for _ in range(1200)]
    texts += ["net sales rose 2 %, it's said; we'll see. " * 3, "", " ", "a", " a", "a "]
    ids, offsets = backend.table.lookup(texts)
    found = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]
    assert found == backend.encode(texts)
    again, _ = backend.table.lookup(texts)  # all of them known by now
    assert again.tolist() == ids.tolist()


def test_other_tokenizers_are_not_cut(tmp_path: Path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    assert can_cut(json.dumps(table))
    for change in (
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": None},
        {"model": {"type": "Unigram"}},
        {"normalizer": {"type": "Lowercase"}},
        {"added_tokens": [{"special": False, "lstrip": True, "rstrip": False, "content": "x"}]},
    ):
        assert not can_cut(json.dumps({**table, **change}))


def test_a_token_of_its_own_that_reaches_across_pieces(tmp_path: Path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)  # the other is shared by all tests
    tokenizer.add_tokens(["beta-2"])
    tokenizer.save_pretrained(tmp_path)
    backend = Backend(tmp_path / "tokenizer.json")
    assert backend.cuts_at_spaces
    assert not backend.cuts_words
    ids, _ = backend.table.lookup(["a beta-2 b (beta-2)"])
    (expected,) = backend.encode(["a beta-2 b (beta-2)"])
    assert ids.tolist() == expected
    assert expected.count(len(tokenizer) - 1) == 2


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
