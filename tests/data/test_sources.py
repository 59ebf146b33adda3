"""Local files in every format, and clear words about those that cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.clean import clean_documents
from toolkit.data.config import SourceSection
from toolkit.data.sources import Document, read_documents
from toolkit.errors import DataError


def source(**values: Any) -> SourceSection:
    return SourceSection.model_validate({"role": "domain", **values})


def test_each_format(tmp_path: Path):
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.md").write_text("# marked")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "row one"}) + "\n\n")
    (tmp_path / "d.csv").write_text('text,who\n"row, two",me\n')
    (tmp_path / "e.html").write_text("<html><body><p>web page</p></body></html>")
    texts = [d.text for d in read_documents("s", source(files=[f"{tmp_path}/*"]))]
    assert texts == ["plain text", "# marked", "row one", "row, two", "web page"]


def test_groups_come_from_a_field(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "x", "patient": 7}\n')
    (document,) = read_documents("s", source(files=[str(path)], group_field="patient"))
    assert document.group == "7"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{bad\n', "a.jsonl:2: is not valid JSON"),
        ("a.jsonl", b'{"texts": "x"}\n', "did you mean texts?"),
        ("a.csv", b"body\nx\n", "has no field 'text'"),
        ("a.txt", b"\xff\xfe\x00x", "is not UTF-8"),
        ("a.pdf", b"%PDF", "format is unknown"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_documents("s", source(files=[str(tmp_path / name)])))
    assert words in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"no/such\.txt: no such file"):
        list(read_documents("s", source(files=["no/such.txt"])))


def test_a_source_has_exactly_one_place():
    with pytest.raises(ValueError, match="exactly one of artefact, hub and files"):
        source(files=["a"], hub={"dataset": "d"})


def test_hub_datasets_are_streamed_from_a_local_copy(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "from datasets"}\n')
    (document,) = read_documents("s", source(hub={"dataset": str(tmp_path)}))
    assert document.text == "from datasets"


def test_cleaning_counts_what_it_leaves_out():
    texts = ["one two three", "one  two three", "short", "four five six"]
    counts: Counter[str] = Counter()
    documents = [Document(f"s/{n}", "s", "g", text) for n, text in enumerate(texts)]
    kept = [d.text for d in clean_documents(documents, min_words=2, counts=counts)]
    assert kept == ["one two three", "four five six"]
    assert counts == {"read": 4, "short": 1, "repeated": 1, "kept": 2}
