"""Strict sections: every fault at once, each at its key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from toolkit.errors import ConfigError
from toolkit.load_yaml import load_yaml
from toolkit.section import Fraction, Section, check_section, parse_section, replace_values


class Inner(Section):
    decay_fraction: Fraction = 0.5
    warmup_fraction: Fraction = 0.1


class Outer(Section):
    schedule: Inner = Inner()
    epochs: int = 1


def test_all_faults_at_once_each_at_its_key():
    data = {"schedule": {"decay_fraction": 1.4, "warmup_fracton": 0.1}, "epochs": "many"}
    with pytest.raises(ConfigError) as caught:
        parse_section(Outer, data, where="recipes/law.yaml", what="recipe")
    lines = str(caught.value).splitlines()
    assert lines[0] == "recipes/law.yaml is not a valid recipe:"
    assert "  schedule.decay_fraction: must be at most 1.0 (got 1.4)" in lines
    hint = "  schedule.warmup_fracton: unknown key; did you mean warmup_fraction?"
    assert hint in lines
    assert any(line.startswith("  epochs:") and "'many'" in line for line in lines)
    assert caught.value.exit_code == 2


def test_values_are_replaced_under_known_keys_alone():
    outer = replace_values(Outer(epochs=2), schedule=Inner(decay_fraction=0.2))
    assert (outer.epochs, outer.schedule.decay_fraction) == (2, 0.2)
    with pytest.raises(TypeError, match="Outer has no epoch"):
        replace_values(Outer(), epoch=3)


def test_sections_are_copied_through_the_helper_that_checks_keys():
    toolkit = Path(__file__).parents[1] / "toolkit"
    texts = {path.name: path.read_text(encoding="utf-8") for path in toolkit.rglob("*.py")}
    assert [name for name, text in texts.items() if ".model_copy(" in text] == ["section.py"]


class Renamed(Section):
    former_keys = {"rewarm_fraction": "warmup_fraction", "split.tuning": "validation"}  # noqa: RUF012

    warmup_fraction: Fraction
    split: dict[Literal["train", "validation"], Inner] = Field(default_factory=dict)


class Holder(Section):
    by_name: dict[str, Renamed] = Field(default_factory=dict)
    in_order: tuple[Renamed | None, ...] = ()


def test_a_former_key_is_answered_with_its_new_name():
    old = {"rewarm_fraction": 0.1, "split": {"tuning": {}}}
    data = {"by_name": {"split": old, "other": {"rewarm": 0.1}}, "in_order": [None, old]}
    assert sorted(map(str, check_section(Holder, data)[1])) == [
        "by_name.other.rewarm: unknown key; known here: warmup_fraction, split",
        "by_name.other.warmup_fraction: is missing",
        "by_name.split.rewarm_fraction: is called warmup_fraction now",
        "by_name.split.split.tuning: is called validation now",
        "in_order.1.rewarm_fraction: is called warmup_fraction now",
        "in_order.1.split.tuning: is called validation now",
    ]


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Inner().decay_fraction = 0.3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "'a' stands here twice"),
        ("a: {null: 1}\n", "a key is empty or null"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "must hold keys and values (got list)"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, words: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
