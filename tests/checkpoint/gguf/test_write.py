"""GGUF files: written as llama.cpp's converter writes them, and loaded again by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import CHAT_TEMPLATE, paragraph
from tests.helpers.gguf_models import LLAMA_3
from toolkit.checkpoint.gguf.compare import TEXT, _compare_entries, compare_gguf
from toolkit.checkpoint.gguf.tensors import permute_rows
from toolkit.checkpoint.gguf.vocabulary import read_vocabulary
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.errors import CheckpointError


def fields(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_rows_of_a_head_become_pairs():
    # One head of 4 rows is two halves, a b | c d, and becomes the pairs a c | b d.
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0]], dtype=np.float32)
    assert permute_rows(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_what_the_type_can_hold_comes_back_exactly(
    tmp_path: Path, make_model: Callable[..., Path], kind: str, tied: bool
):
    # bfloat16 weights of ordinary size fit into all three types but for float16's smallest ones.
    dtype = torch.float16 if kind == "F16" else torch.bfloat16
    model = make_model(tmp_path / "model", dtype=dtype, tie_word_embeddings=tied)
    path = tmp_path / "out" / f"tiny-{kind}.gguf"
    path.parent.mkdir()
    export_gguf(model, path, kind, name="tiny")
    found = compare_gguf(model, path)
    assert found.is_exact
    assert found.divergence == 0.0
    assert found.same_tokens == 1.0
    assert ("output.weight" in {t.name for t in gguf.GGUFReader(path).tensors}) is not tied


def test_eight_bits_lose_a_little(tmp_path: Path, make_model: Callable[..., Path]):
    model = make_model(tmp_path / "model")
    path = tmp_path / "tiny.gguf"
    export_gguf(model, path, "Q8_0", name="tiny")
    found = compare_gguf(model, path)
    # A block's largest entry is 127 steps, and errors are spread evenly over a step: 1/sqrt(12)
    # of it. The largest of 32 normal entries is about 2.4 deviations: 2.4 / 127 / 3.46 = 0.0055.
    assert 0.0050 < found.worst_relative < 0.0061
    assert 0.0 < found.divergence < 1e-3
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, make_model: Callable[..., Path]):
    model = make_model(tmp_path / "model")
    for name in ("one.gguf", "two.gguf"):
        export_gguf(model, tmp_path / name, "Q8_0", name="tiny")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_metadata(tmp_path: Path, make_model: Callable[..., Path]):
    model = make_model(tmp_path / "model")
    facts = {"license": "apache-2.0", "languages": ["en"], "base_models": ["org/base"]}
    export_gguf(model, tmp_path / "a.gguf", "BF16", name="tiny", facts=facts)
    found = fields(tmp_path / "a.gguf")
    assert found["general.architecture"] == "llama"
    assert found["general.license"] == "apache-2.0"
    assert found["general.languages"] == ["en"]
    assert found["general.base_model.0.organization"] == "org"
    assert found["llama.attention.head_count_kv"] == 2
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert found["tokenizer.ggml.eos_token_id"] == 0
    assert found["tokenizer.ggml.add_bos_token"] is False
    types = found["tokenizer.ggml.token_type"]
    assert isinstance(types, list)
    assert types[0] == 3  # <|end|> is a control token
    assert set(types[1:]) == {1}


def test_llama_3_frequencies(tmp_path: Path, make_model: Callable[..., Path]):
    # theta 500000, head of 8: frequencies 1, 0.0376, 0.00141, 0.0000532, so wave lengths 6.28, 167,
    # 4443, 118131. Context 64: up to 64/4 = 16 nothing changes, from 64/1 on 8 times slower.
    model = make_model(tmp_path / "model", rope_parameters=LLAMA_3)
    export_gguf(model, tmp_path / "a.gguf", "F32", name="tiny")
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    np.testing.assert_allclose(tensors["rope_freqs.weight"], [1.0, 8.0, 8.0, 8.0], rtol=1e-6)
    found = compare_gguf(model, tmp_path / "a.gguf")
    assert found.is_exact
    assert found.divergence == 0.0


def test_a_tokenizer_of_pieces(tmp_path: Path, make_model: Callable[..., Path]):
    """As Llama 2's: spaces are ▁, unknown characters fall back to bytes."""
    model = make_model(tmp_path / "model")
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, **{"unk_token": "<unk>"}))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=pieces, show_progress=False)
    backend.train_from_iterator([paragraph(seed) for seed in range(10)], trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(model)
    found = read_vocabulary(model, 320)
    assert found.model == "llama"
    assert found.types[:4] == [2, 3, 3, 6]
    assert found.add_space_prefix
    assert found.scores is not None
    # The first merge scores 0, later ones less: SentencePiece merges the highest first.
    first, second = ("".join(pair.split(" ")) for pair in found.merges[:2])
    assert found.scores[found.tokens.index(first)] == 0.0
    assert found.scores[found.tokens.index(second)] == -1.0
    export_gguf(model, tmp_path / "a.gguf", "F32", name="tiny")
    assert compare_gguf(model, tmp_path / "a.gguf").is_exact  # tokens are compared there too


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    tmp_path: Path, make_model: Callable[..., Path], changes: dict[str, object], words: str
):
    model = make_model(tmp_path / "model", **changes)
    with pytest.raises(CheckpointError, match=words):
        export_gguf(model, tmp_path / "a.gguf", "F16", name="tiny")
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*.partial"))


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path, make_model: Callable[..., Path]):
    model = make_model(tmp_path / "model")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\w"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.save(str(model / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"Split then ByteLevel.*no name"):
        export_gguf(model, tmp_path / "a.gguf", "F16", name="tiny")


def test_a_damaged_file_is_seen(tmp_path: Path, make_model: Callable[..., Path]):
    model = make_model(tmp_path / "model")
    path = tmp_path / "a.gguf"
    export_gguf(model, path, "F32", name="tiny")
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40  # an exponent of the last tensor
    path.write_bytes(data)
    assert not compare_gguf(model, path).is_exact
    assert len(TEXT) > 100


def test_entries_that_are_no_numbers_are_no_agreement(tmp_path: Path):
    own = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 2.0])}
    assert _compare_entries(tmp_path, own, own) == (0.0, 0.0, 0.0, "b")
    halved = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 1.0])}
    largest, relative, worst_relative, worst = _compare_entries(tmp_path, own, halved)
    assert (largest, worst_relative, worst) == (1.0, 0.5, "b")
    assert relative == pytest.approx((1 / 29) ** 0.5)  # 9 + 16 + 4
    spoiled = {**own, "a": torch.tensor([3.0, float("nan")])}
    for pair in ((own, spoiled), (spoiled, own), (spoiled, spoiled)):
        with pytest.raises(CheckpointError, match="a holds NaN or infinity"):
            _compare_entries(tmp_path, *pair)
