"""One reader for lines of JSON: whatever is wrong with one is one fault at one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.data.evaluation_texts import read_other_evaluations
from toolkit.errors import EvaluationError, ToolkitError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import read_rows
from toolkit.evaluate.prompt_files import read_prompt_files
from toolkit.json_lines import iterate_rows, sealed, split_lines, unsealed
from toolkit.load_yaml import decode_json
from toolkit.pipeline.merge_output import read_metrics
from toolkit.train.metrics import read_curve

DEEP = "[" * 100_000 + "]" * 100_000
DAMAGED = ["{", "null", "[]", "3", '"x"', DEEP, '{"a": ' + "9" * 5000 + "}", "\ufeff{}"]


def test_rows_have_their_places(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\u2028"}\n\n{"b": 1}\n', encoding="utf-8")
    assert list(iterate_rows(path)) == [(f"{path}:1", {"a": "\u2028"}), (f"{path}:3", {"b": 1})]
    assert split_lines("a\u2028b\n \nc") == ["a\u2028b", "c"]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ToolkitError, match=r"a\.jsonl:2: ") as raised:
        list(iterate_rows(path))
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("data", [b"\xff\xfe", None])
def test_files_that_cannot_be_read(tmp_path: Path, data: bytes | None):
    path = tmp_path / "a.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(EvaluationError, match=r"a\.jsonl: "):
        list(iterate_rows(path, EvaluationError))


def _prompts(path: Path) -> object:
    evaluate = EvaluateSection.model_validate({"retention": {"files": [str(path)]}})
    return read_prompt_files(evaluate, "retention", "test")


def _others(path: Path) -> object:
    return read_other_evaluations((str(path),))


@pytest.mark.parametrize("read", [read_rows, _prompts, read_metrics])
@pytest.mark.parametrize("line", DAMAGED[:-1])  # at a file's start the mark is passed over
def test_whoever_reads_them(tmp_path: Path, read: Callable[[Path], object], line: str):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(ToolkitError, match=r"a\.jsonl"):
        read(path)


@pytest.mark.parametrize("line", ["{", DEEP])
def test_other_evaluations(tmp_path: Path, line: str):
    for name in ("a.jsonl", "a.json"):
        path = tmp_path / name
        path.write_text(line)
        with pytest.raises(ToolkitError, match=name):
            _others(path)


@pytest.mark.parametrize("row", [{}, {"id": 1, "role": "domain", "text": "x"}, {"text": "x"}])
def test_documents_lack_what_they_are_scored_by(tmp_path: Path, row: dict[str, object]):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(EvaluationError, match=r"test\.jsonl:1: has no (id|role)"):
        read_rows(path)


@pytest.mark.parametrize("line", [*DAMAGED, '{"loss": 1}', '{"step": "x"}', '{"step": 2'])
def test_a_curve_ends_where_its_file_is_damaged(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "tokens": 5, "loss": 2.0}}\n{line}', encoding="utf-8")
    (point,) = read_curve(path)
    assert (point.step, point.tokens, point.loss) == (1, 5, 2.0)


def test_half_characters_become_whole_ones(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"a": ["\ud800x", {"\udfff": 1.5}], "b": "\ud83d\ude00 \u4e2d"}')
    assert decode_json(b'"\xed\xa0\x80x"') == "\ufffdx"  # as bytes, which json takes
    ((_, row),) = iterate_rows(path)
    assert row == {"a": ["\ufffdx", {"\ufffd": 1.5}], "b": "\U0001f600 \u4e2d"}


def test_a_changed_row_does_not_fit_its_sum():
    row = sealed({"a": 1.5, "b": [None, "x"]})
    assert unsealed(json.loads(json.dumps(row))) == {"a": 1.5, "b": [None, "x"]}
    for changed in ({**row, "a": 1.25}, {**row, "c": 0}, {"a": 1.5}, {**row, "sum": "x"}, [], None):
        assert unsealed(changed) is None
