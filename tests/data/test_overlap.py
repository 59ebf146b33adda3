"""Overlap with evaluation texts: of short pages with long ones, and of long with short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toolkit.data.evaluation_texts import read_other_evaluations
from toolkit.data.overlap import Overlap, shares, write_known_runs
from toolkit.data.words import run_hashes, word_hashes
from toolkit.errors import DataError


def known(folder: Path, texts: list[str], words: int) -> list[np.ndarray]:
    write_known_runs(folder, texts, words)
    return [np.load(folder / f"known.{part}.npy") for part in ("runs", "owner", "sizes")]


def test_worked_example(tmp_path: Path):
    # Runs of two. Known: ab bc of the first text, cd de of the second (bc is the first's).
    arrays = known(tmp_path, ["a b c", "b c d e"], 2)
    assert arrays[2].tolist() == [2, 2]
    texts = ["x a b y", "b c", "q", "", "c d e and more words"]
    share, contained = shares(*run_hashes(*word_hashes(texts), 2), *arrays)
    # xa ab by: 1 of 3, half of the first text; bc: all; cd de ed: 2 of 6, all of the second text.
    assert share.tolist() == [1 / 3, 1.0, 0.0, 0.0, 2 / 5]
    assert contained.tolist() == [1 / 2, 1 / 2, 0.0, 0.0, 1.0]


def test_nothing_is_known(tmp_path: Path):
    runs = run_hashes(*word_hashes(["a b c"]), 2)
    assert [s.tolist() for s in shares(*runs, *known(tmp_path, [], 2))] == [[0.0], [0.0]]


def test_a_long_page_that_holds_a_whole_question_is_no_training_text(tmp_path: Path):
    question = "which of the four options is the one that " + " ".join(f"q{n}" for n in range(20))
    write_known_runs(tmp_path, [question], 13)
    filler = " ".join(f"w{n}" for n in range(2000))
    texts = [filler, f"{filler} {question} {filler}", f"{filler} {question[:60]}"]
    clean = Overlap(tmp_path, 13, 0.1, 0.5).is_clean(*word_hashes(texts))
    assert clean.tolist() == [True, False, True]


def test_texts_of_evaluation_files(tmp_path: Path):
    (tmp_path / "task.json").write_text('{"examples": [{"input": "one", "n": [2, "two"]}]}')
    (tmp_path / "more.jsonl").write_text('{"q": "thr\u2028ee"}\n\n{"q": {"a": "four"}}\n')
    (tmp_path / "plain.txt").write_text("five")
    files = tuple(str(tmp_path / name) for name in ("task.json", "more.jsonl", "plain.txt"))
    assert read_other_evaluations(files) == ["one", "two", "thr\u2028ee", "four", "five"]
    (tmp_path / "task.json").write_text("{")
    for name, fault in (("task.json", "is not valid JSON"), ("none.json", "cannot be read")):
        with pytest.raises(DataError, match=rf"decontaminate_files: .*{name}: {fault}"):
            read_other_evaluations((str(tmp_path / name),))
