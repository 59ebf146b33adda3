"""Scores are kept once, by several processes, whatever happens to one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import EvaluationError
from toolkit.evaluate.cache import ScoreCache, _entry, candidate_hash
from toolkit.evaluate.sets import EvaluationSet
from toolkit.json_lines import sealed


def some_set(asked: list[list[int]], **changes: Any) -> EvaluationSet:
    def score(model: Any, rows: Any) -> list[float]:
        asked.append(list(rows))
        return [model + row / 10.0 for row in rows]

    found = EvaluationSet(
        "x", "domain", "u", "abcd", "abcd", [1.0] * 4, [1] * 4, "content", score, settings_hash="s"
    )
    return replace(found, **changes)


def test_nothing_is_computed_twice(tmp_path: Path):
    asked: list[list[int]] = []
    items, cache = some_set(asked), ScoreCache(tmp_path / "deep" / "scores.jsonl")
    assert cache.score(1.0, "m", items, [2, 0]) == [1.2, 1.0]
    assert cache.score(1.0, "m", items) == [1.0, 1.1, 1.2, 1.3]
    assert asked == [[2, 0], [1, 3]]
    other = ScoreCache(tmp_path / "deep" / "scores.jsonl")  # another run
    assert other.score(None, "m", items, [3, 3]) == [1.3, 1.3]
    assert len(asked) == 2


def test_models_items_and_settings_are_told_apart(tmp_path: Path):
    asked: list[list[int]] = []
    cache = ScoreCache(tmp_path / "s.jsonl")
    items = some_set(asked)
    cache.score(1.0, "m", items, [0])
    assert cache.score(2.0, "other", items, [0]) == [2.0]
    assert cache.score(3.0, "m", replace(items, content_hash="other"), [0]) == [3.0]
    assert cache.score(4.0, "m", replace(items, settings_hash="other"), [0]) == [4.0]
    assert cache.score(5.0, "m", replace(items, name="renamed"), [0]) == [1.0]


def test_one_pass_serves_all_its_sets(tmp_path: Path):
    asked: list[list[int]] = []

    def together(model: Any, rows: Any) -> dict[str, list[float]]:
        asked.append(list(rows))
        return {"x": [1.0 for _ in rows], "y": [2.0 for _ in rows]}

    first = some_set([], score_together=together)
    second = replace(first, name="y", settings_hash="t")
    cache = ScoreCache(tmp_path / "s.jsonl")
    assert cache.score(None, "m", first, [0, 1], together=[first, second]) == [1.0, 1.0]
    assert cache.score(None, "m", second, [1, 0], together=[first, second]) == [2.0, 2.0]
    assert asked == [[0, 1]]


def test_a_set_keeps_its_own_scores_whatever_another_of_its_name_is(tmp_path: Path):
    few, many = some_set([]), some_set([], settings_hash="five examples")
    cache = ScoreCache(tmp_path / "s.jsonl")
    assert cache.score(1.0, "m", few, [0], together=[few, many]) == [1.0]
    assert cache.score(2.0, "m", many, [0], together=[few, many]) == [2.0]
    assert (cache.known("m", few), cache.known("m", many)) == ({0: 1.0}, {0: 2.0})


def test_scores_of_another_arithmetic_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    items = some_set([])
    ScoreCache(tmp_path / "c.jsonl").add("m", items, [0], [1.0])
    assert ScoreCache(tmp_path / "c.jsonl").known("m", items) == {0: 1.0}
    monkeypatch.setattr("toolkit.evaluate.cache._ARITHMETIC", 1)
    assert ScoreCache(tmp_path / "c.jsonl").known("m", items) == {}


def test_damaged_lines_are_passed_over(tmp_path: Path):
    path = tmp_path / "s.jsonl"
    asked: list[list[int]] = []
    items = some_set(asked)
    ScoreCache(path).score(1.0, "m", items, [0])
    whole = path.read_bytes()
    path.write_bytes(whole + b'\x00\xff{"model":"m"}\n[]\n' + whole[: len(whole) // 2])
    cache = ScoreCache(path)
    assert cache.known("m", items) == {0: 1.0}
    cache.score(1.0, "m", items, [1])  # after the half line that a killed process left
    assert ScoreCache(path).known("m", items) == {0: 1.0, 1: 1.1}


DAMAGES = {
    "another digit": lambda text: text.replace("1.5", "1.7"),
    "not a number": lambda text: text.replace("1.5", "NaN"),
    "infinite": lambda text: text.replace("1.5", "Infinity"),
    "text": lambda text: text.replace("1.5", '"1.5"'),
    "another row": lambda text: text.replace("[0,1]", "[0,2]"),
    "half a row": lambda text: text.replace("[0,1]", "[0,0.5]"),
    "another model": lambda text: text.replace('"m"', '"n"'),
    "fewer losses": lambda text: text.replace("1.5,", ""),
    "cut": lambda text: text[: len(text) // 2] + "\n",
    "no sum": lambda text: text[: text.rindex(',"sum"')] + "}\n",
    "deep": lambda text: "[" * 100_000 + text,
    "a list": lambda text: text.replace(text, "[1]\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_score_is_scored_again_with_a_word(tmp_path: Path, capsys, damage: str):
    path, asked = tmp_path / "s.jsonl", list[list[int]]()
    items = some_set(asked)
    ScoreCache(path).score(1.5, "m", items, [0, 1])
    ScoreCache(path).score(1.5, "m", items, [2])
    first, second = path.read_text().split("\n")[:2]
    changed = DAMAGES[damage](first + "\n")
    assert changed != first + "\n"
    path.write_text(changed + second + "\n")
    assert ScoreCache(path).score(1.5, "m", items, [0, 1, 2]) == [1.5, 1.6, 1.7]
    assert asked == [[0, 1], [2], [0, 1]]
    assert "s.jsonl: 1 damaged line is passed over" in capsys.readouterr().out
    assert ScoreCache(path).known("n", items) == {}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_sum_does_not_make_a_number_of_what_is_none(tmp_path: Path, loss: float):
    row = {"model": "m", "set": "s", "rows": [0], "losses": [loss]}
    assert _entry(json.dumps(sealed(row)).encode()) is None
    assert _entry(json.dumps(sealed({**row, "losses": [0.5]})).encode()) == (("m", "s"), {0: 0.5})


def test_a_loss_that_is_no_number_is_not_kept(tmp_path: Path):
    cache = ScoreCache(tmp_path / "s.jsonl")
    with pytest.raises(EvaluationError, match="x: a loss is nan"):
        cache.add("m", some_set([]), [0], [float("nan")])
    assert not (tmp_path / "s.jsonl").exists()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.evaluate.test_cache import some_set
from toolkit.evaluate.cache import ScoreCache
cache, items = ScoreCache(Path(sys.argv[1])), some_set([])
for number in range(int(sys.argv[4])):
    cache.add(f"{sys.argv[2]}-{number}", items, [0, 1, 2, 3], [0.0, 0.1, 0.2, 0.3])
    print(number, flush=True)
"""


def test_processes_share_a_file_and_one_may_be_killed(tmp_path: Path):
    path, root = tmp_path / "s.jsonl", str(Path(__file__).parents[2])

    def writer(name: str, count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(path), name, root, str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with writer("killed", 1_000_000) as killed, writer("a", 200) as one, writer("b", 200) as two:
        seen = 0
        assert killed.stdout is not None
        for _ in range(50):
            seen = int(killed.stdout.readline())
        killed.kill()
        one.communicate()
        two.communicate()
        killed.communicate()
    cache, items = ScoreCache(path), some_set([])
    for name in ("a", "b"):
        for number in range(200):
            assert cache.known(f"{name}-{number}", items) == {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3}
    for number in range(seen):
        assert len(cache.known(f"killed-{number}", items)) == 4
    damaged = 0
    for line in path.read_bytes().splitlines():
        try:
            json.loads(line)
        except ValueError:
            damaged += 1
    assert damaged <= 1


def test_a_candidate_is_what_it_is_made_of():
    parents = {"general": "a", "specialist": "b"}
    assert candidate_hash(parents, {"t": 0.5}, 1) != candidate_hash(parents, {"t": 0.5}, 2)
    assert candidate_hash(parents, {"t": 0.5}, 1) != candidate_hash(
        {"general": "b", "specialist": "a"}, {"t": 0.5}, 1
    )
