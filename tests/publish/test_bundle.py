"""The bundle holds what is needed, says nothing of this machine, and is refused where it must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from toolkit.errors import PublishError
from toolkit.publish.bundle import check_bundle, write_bundle
from toolkit.publish.card import model_card

VALUE = {"estimate": 0.8, "low": 0.7, "high": 0.9}
RESULTS: dict[str, Any] = {
    "description": "tiny",
    "chosen": "linear alpha=0.6",
    "reason": "Because.",
    "any_merge": True,
    "candidates": [{}, {}],
    "test": {"domain": 4, "general": 5},
    "models": {
        name: {"domain": VALUE, "general": VALUE} for name in ("general", "specialist", "merge")
    },
}


def card() -> str:
    return model_card(
        "org/tiny",
        RESULTS,
        general="org/base",
        license_name="apache-2.0",
        sources=[{"name": "docs", "role": "domain", "license": "public"}],
        merge_yaml="merge_method: linear\n",
    )


@pytest.fixture
def bundle(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    merged = make_model(tmp_path / "merged")
    (merged / "report.json").write_text("{}")
    (merged / "scores.jsonl").write_text("{}")
    (tmp_path / "bundle").mkdir()
    write_bundle(merged, tmp_path / "bundle", card=card(), merge_yaml="merge_method: linear\n")
    return tmp_path / "bundle"


def test_what_is_in_it(bundle: Path):
    names = {path.name for path in bundle.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "merge.yaml",
    } <= names
    assert "scores.jsonl" not in names
    sums = dict(
        reversed(line.split("  ")) for line in (bundle / "SHA256SUMS").read_text().splitlines()
    )
    assert set(sums) == names - {"SHA256SUMS"}
    check_bundle(bundle, RESULTS, "apache-2.0")


def test_the_card_is_valid_on_the_hub():
    data = ModelCard(card()).data
    assert data.base_model == ["org/base"]
    assert data.license == "apache-2.0"
    assert data.to_dict()["base_model_relation"] == "merge"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("see /home/jane/model", "local path (/home/jane/model)"),
        ("token hf_" + "a" * 34, "secret (hf_a…)"),
    ],
)
def test_what_must_not_leave(bundle: Path, text: str, words: str):
    (bundle / "report.json").write_text(text)
    with pytest.raises(PublishError) as caught:
        check_bundle(bundle, RESULTS, "apache-2.0")
    assert words in str(caught.value)
    assert "a" * 20 not in str(caught.value)


def test_all_failed_checks_at_once(bundle: Path):
    (bundle / "model.bin").write_bytes(b"x")
    with pytest.raises(PublishError) as caught:
        check_bundle(bundle, {**RESULTS, "any_merge": False}, None)
    assert len(str(caught.value).splitlines()) == 4
