"""The bounded look at documents, words and what a model reads; literals worked by hand."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import paragraph, tiny_config
from toolkit.data.config import ArtifactSection, CleaningSection, SourceSection
from toolkit.evaluate.config import EvaluateSection
from toolkit.plan import sample as sample_module
from toolkit.plan.evidence import Looked, evidence_of, look
from toolkit.plan.ready_recipe import recipe_text
from toolkit.plan.sample import is_fetched, sample_source
from toolkit.plan.settings import Setting
from toolkit.plan.surprise import TextPiece, measure_surprise, shuffled_words
from toolkit.plan.token_budget import source_amount
from toolkit.plan.words import WordFigures, word_figures

LOOSE = CleaningSection(
    min_words=1, max_repeated_line_fraction=1.0, max_repeated_ngram_fraction=1.0
)


def rows(path: Path, count: int) -> None:
    texts = [json.dumps({"text": f"{n} " + paragraph(n)}) for n in range(count)]
    path.write_text("\n".join(texts) + "\n")


def sampled(monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float = 9.0, **source: Any):
    monkeypatch.chdir(folder)
    section = SourceSection.model_validate({"role": "domain", **source})
    return sample_source("s", section, LOOSE, seed=0, seconds=seconds)


def test_all_of_a_source_is_counted(tmp_path: Path, monkeypatch):
    rows(tmp_path / "a.jsonl", 200)
    found = sampled(monkeypatch, tmp_path, files=["a.jsonl"])
    assert (found.whole, found.read_documents, found.seen_fraction) == (True, 200, 1.0)
    assert found.train_documents == len(found.documents)
    assert 150 < found.train_documents < 200  # nine tenths train
    assert found.estimated_train_bytes == found.split_bytes["train"]
    assert sum(found.split_bytes.values()) == sum(
        len(json.loads(line)["text"]) for line in (tmp_path / "a.jsonl").read_text().splitlines()
    )


def test_a_part_of_one_file_is_scaled_by_its_bytes(tmp_path: Path, monkeypatch):
    rows(tmp_path / "a.jsonl", 640)
    found = sampled(monkeypatch, tmp_path, seconds=0.0, files=["a.jsonl"])
    assert (found.whole, found.read_documents) == (False, 64)
    assert found.seen_fraction == pytest.approx(0.1, rel=0.15)
    whole = sampled(monkeypatch, tmp_path, files=["a.jsonl"])
    assert found.estimated_train_bytes == pytest.approx(whole.estimated_train_bytes, rel=0.2)


def test_a_part_of_several_files_is_scaled_by_theirs(tmp_path: Path, monkeypatch):
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("")
    for number in range(256):
        (tmp_path / f"t{number:03d}.txt").write_text(paragraph(number))
    found = sampled(monkeypatch, tmp_path, seconds=0.0, files=["t*.txt"])
    assert found.read_documents == 64
    assert found.seen_fraction == pytest.approx(0.25, rel=0.1)


def test_a_limit_of_documents_says_how_large_the_part_is(tmp_path: Path, monkeypatch):
    rows(tmp_path / "a.jsonl", 640)
    found = sampled(monkeypatch, tmp_path, seconds=0.0, files=["a.jsonl"], max_documents=128)
    assert found.seen_fraction == 0.5
    # A limit beyond what the file holds says nothing of its size.
    found = sampled(monkeypatch, tmp_path, seconds=0.0, files=["a.jsonl"], max_documents=64_000)
    assert found.seen_fraction == pytest.approx(0.1, rel=0.15)


def test_what_is_kept_is_bounded_and_does_not_depend_on_the_order(tmp_path: Path, monkeypatch):
    rows(tmp_path / "a.jsonl", 640)
    monkeypatch.setattr(sample_module, "KEPT_BYTES", 20_000)
    found = sampled(monkeypatch, tmp_path, files=["a.jsonl"])
    assert sum(len(d.text) for d in found.documents) < 45_000
    ids = {d.id for d in found.documents}
    assert any(identity.endswith(("5", "6", "7")) for identity in ids)
    again = sampled(monkeypatch, tmp_path, files=["a.jsonl"])
    assert [d.id for d in again.documents] == [d.id for d in found.documents]


ARTIFACT = ArtifactSection(package="none", version="1", sha256="0" * 64, member="*")


def test_an_artifact_that_takes_too_long_is_left(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    began: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def slow(command: list[str], **more: Any) -> Any:
        began.append(real(["sleep", "60"], **more))
        return began[-1]

    monkeypatch.setattr(sample_module.subprocess, "Popen", slow)
    assert not is_fetched(ARTIFACT, 0.2)
    assert began[0].poll() is not None  # it does not go on behind our back
    section = SourceSection(role="domain", artifact=ARTIFACT)
    found = sample_source("s", section, LOOSE, seed=0, seconds=1.0, fetch_seconds=0.1)
    assert "could not be fetched" in found.why
    assert found.estimated_train_bytes is None


def test_a_cached_artifact_is_there(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    folder = tmp_path / "artifacts" / ARTIFACT.sha256
    folder.mkdir(parents=True)
    (folder / "none-1.tar.gz").write_bytes(b"x")
    assert is_fetched(ARTIFACT, 0.0)


def test_amounts_by_hand():
    common: dict[str, Any] = {
        "tokens_per_byte": 0.25, "sizes": [7, 3, 3], "sequence_length": 8, "packing": "best_fit",
    }  # fmt: skip
    # targets 8, 4, 4 fill two blocks of 8 exactly
    found = source_amount("s", "domain", train_bytes=1000.0, **common)
    assert (found.tokens, found.available, found.fill, found.origin) == (250, 250, 1.0, "counted")
    limited = source_amount("s", "domain", train_bytes=1000.0, max_tokens=100, **common)
    assert (limited.tokens, limited.available) == (100, 250)
    part = source_amount(
        "s", "domain", train_bytes=1000.0, is_whole=False, is_known_share=False, **common
    )
    assert (part.at_least, part.origin) == (True, "estimated")
    declared = source_amount("s", "domain", train_bytes=None, declared=9, **common)
    assert (declared.tokens, declared.origin, declared.at_least) == (9, "declared", False)
    # targets 6, 6 leave a quarter of two blocks empty
    loose = source_amount("s", "domain", train_bytes=1.0, **{**common, "sizes": [5, 5]})
    assert loose.fill == 0.75


class Letters:
    """A token for two characters, and one for what is left."""

    def count_many(self, texts: list[str]) -> list[int]:
        return [-(-len(text) // 2) for text in texts]


def test_words_by_hand():
    # " net" 2, " amortization" 7, twice; " the" 2 -> (2 + 7 + 7 + 2) / 4; "2019" is no word
    found = word_figures(["net amortization 2019", "the amortization"], ["The cat"] * 4, Letters())
    assert found.num_words == 4
    # Rare is what the other lacks in as much text, whichever is the longer one.
    assert word_figures(["a b c d"], ["d c b a"], Letters()).rare_fraction == 0.0
    assert word_figures(["a b c d"] * 9, ["a b"], Letters()).rare_fraction == 0.0
    assert word_figures(["a b"], ["c d a b"] * 9, Letters()).rare_fraction == 1.0
    assert word_figures(["a b c d"] * 9, ["a b"], Letters()).num_words == 36
    assert found.tokens_per_word == 18 / 4
    assert found.badly_split_fraction == 0.5
    assert found.rare_fraction == 0.75  # the other texts have "the", in another case
    assert found.examples == ("amortization",)
    assert found.tokens_per_byte == (11 + 8) / (21 + 16)


def words(num_words: int, rare: float, per_word: float = 1.0) -> WordFigures:
    return WordFigures(num_words, per_word, 0.0, 0.25, rare, ())


@pytest.mark.parametrize(("num_general", "rare"), [(60_000, 0.4), (900, None)])
def test_words_of_a_short_text_are_not_called_rare(num_general: int, rare: float | None):
    looked = Looked({}, {}, {"domain": words(60_000, 0.4), "general": words(num_general, 0.1)}, {})
    found = evidence_of(looked, None, trained_parameters=None, num_talks=0)
    assert found.rare == rare
    assert found.pieces_ratio == 1.0


def test_of_text_without_letters_there_are_no_pieces_of_words():
    figures = word_figures(["2019 2020", "17 %"], None, Letters())
    looked = Looked({}, {}, {"domain": words(60_000, 0.4), "general": figures}, {})
    assert evidence_of(looked, None, trained_parameters=None, num_talks=0).pieces_ratio is None


def test_looking_without_a_tokenizer_assumes(tmp_path: Path, monkeypatch):
    rows(tmp_path / "a.jsonl", 20)
    found = sampled(monkeypatch, tmp_path, files=["a.jsonl"])
    from toolkit.data.config import DataSection

    data = DataSection.model_validate(
        {"sources": {"s": {"role": "domain", "files": ["a.jsonl"]},
                     "g": {"role": "general", "files": ["a.jsonl"]}}}
    )  # fmt: skip
    looked = look(data, {"s": found}, None)
    assert looked.words == {}
    assert looked.domain_tokens == pytest.approx(found.split_bytes["train"] / 4.3)


def test_shuffling_keeps_words_and_white_space():
    text = "one two\nthree  four five six seven eight"
    mixed = shuffled_words(text, 1, "a")
    assert mixed != text
    assert sorted(mixed.split()) == sorted(text.split())
    assert [c for c in mixed if c.isspace()] == [c for c in text if c.isspace()]
    assert mixed == shuffled_words(text, 1, "a")
    assert mixed != shuffled_words(text, 2, "a")


class Bytes:
    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return [byte + 1 for byte in text.encode()], [(n, n + 1) for n in range(len(text))]


def test_a_model_that_knows_nothing_is_equally_surprised_by_all():
    """All parameters zero: every token of 320 is as likely, log2(320) bits for each byte."""
    model = LlamaForCausalLM(tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    pieces = [
        [
            TextPiece(text, [0, *Bytes().encode(text)[0]])
            for text in (paragraph(n)[:80], paragraph(n + 1)[:90])
        ]
        for n in (0, 5)
    ]
    found = measure_surprise(
        model, pieces[0], pieces[1], Bytes(), EvaluateSection(bootstrap_resamples=100), seed=0
    )
    for figure in (found.domain, found.general, found.domain_shuffled, found.general_shuffled):
        assert figure.estimate == pytest.approx(math.log2(320), rel=1e-5)
    assert found.gap.estimate == pytest.approx(0.0, abs=1e-5)
    assert found.domain_order == pytest.approx(0.0, abs=1e-5)
    assert found.num_tokens == 2 * (80 + 90) * 2


def test_a_recipe_keeps_what_is_not_changed():
    values = {"seed": 3, "data": {"replay_fraction": 0.1, "sources": {"a": {"role": "domain"}}}}
    text = recipe_text(
        values,
        [
            Setting("data.replay_fraction", 0.25, 0.1, "strong"),
            Setting("train.epochs", 2, 1, "two"),
        ],
        ["A line for the top."],
    )
    assert text.splitlines()[:6] == [
        "# A line for the top.",
        "seed: 3",
        "data:",
        "  # strong",
        "  replay_fraction: 0.25",
        "  sources:",
    ]
    assert text.endswith("train:\n  # two\n  epochs: 2\n")
    assert values["data"]["replay_fraction"] == 0.1  # type: ignore[index]
