from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.data.config import SourceSection
from toolkit.data.files import source_files
from toolkit.search.space import find_space
from toolkit.shipped import folders_of, shipped_file, shipped_folder


def test_where_one_stands_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert folders_of("merges") == [shipped_folder("merges")]
    own = tmp_path / "merges"
    own.mkdir()
    (own / "ties.yaml").write_text("merge_method: ties", encoding="utf-8")
    assert find_space("ties", folders_of("merges")).samefile(own / "ties.yaml")
    assert find_space("linear", folders_of("merges")) == shipped_folder("merges") / "linear.yaml"


def test_in_a_checkout_both_are_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(shipped_folder("merges").parent)
    assert folders_of("merges") == [Path("merges")]


def test_a_shipped_recipes_documents_are_found_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = "recipes/finance-questions.jsonl"
    source = SourceSection.model_validate({"role": "domain", "files": [path]})
    (file,) = source_files(source)
    assert file.key == "finance-questions"
    own = tmp_path / path
    own.parent.mkdir()
    own.write_text("{}", encoding="utf-8")
    (file,) = source_files(source)
    assert Path(file.name).samefile(own)


@pytest.mark.parametrize("path", ["recipes", "recipes/", "recipes/../setup.py", "other/a", "/etc"])
def test_what_is_not_shipped(path: str):
    assert shipped_file(path) is None
