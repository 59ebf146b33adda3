"""Search notation: grids, complements, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from toolkit.errors import ConfigError
from toolkit.search.space import load_candidates

MERGES = Path(__file__).parent.parent.parent / "merges"


def write(folder: Path, weight: object, other: object = 1.0) -> None:
    models = [
        {"model": "general", "parameters": {"weight": other}},
        {"model": "specialist", "parameters": {"weight": weight}},
    ]
    (folder / "m.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))


def test_the_endpoints_are_always_there():
    assert [c.name for c in load_candidates((), MERGES)] == ["general", "specialist"]


def test_shipped_merges_parse_and_differ():
    candidates = load_candidates(("linear", "slerp", "ties"), MERGES)
    dumps = {c.config.model_dump_json() for c in candidates}
    assert len(candidates) == len(dumps) == 2 + 6 + 3 + 6
    assert len({c.name for c in candidates}) == len(candidates)


def test_a_complement_is_what_is_left(tmp_path: Path):
    write(tmp_path, {"search": {"name": "alpha", "grid": [0.3]}}, {"search": "1 - alpha"})
    candidate = load_candidates(("m",), tmp_path)[-1]
    assert candidate.name == "m alpha=0.3"
    weights = [m.parameters["weight"] for m in candidate.config.models]
    assert weights == [0.7, 0.3]


def test_grids_inside_gradients_and_filters(tmp_path: Path):
    setting = [
        {"filter": "mlp", "value": [0.0, {"search": {"name": "a", "grid": [0.1, 0.2]}}]},
        {"value": {"search": {"name": "b", "grid": [1.0]}}},
    ]
    write(tmp_path, setting)
    candidates = load_candidates(("m",), tmp_path)[2:]
    assert [c.name for c in candidates] == ["m a=0.1 b=1", "m a=0.2 b=1"]
    weight = candidates[1].config.models[1].parameters["weight"]
    assert weight == [{"filter": "mlp", "value": [0.0, 0.2]}, {"value": 1.0}]


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ({"search": {"grid": []}}, "must be a list of numbers"),
        ({"search": {"gird": [1]}}, "must be {name"),
        ({"search": "1 - beta"}, "'beta', which has no grid"),
        ({"search": {"grid": ["x"]}}, "must be a list of numbers"),
    ],
)
def test_bad_notation_is_named_at_its_key(tmp_path: Path, weight: object, words: str):
    write(tmp_path, weight)
    with pytest.raises(ConfigError) as caught:
        load_candidates(("m",), tmp_path)
    assert words in str(caught.value)
    assert "models.1.parameters.weight" in str(caught.value)


def test_an_unknown_file_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean linear"):
        load_candidates(("liner",), MERGES)
