"""Measures of a general model, read or declared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.checkpoint.config import ShapeSection
from toolkit.errors import ConfigError
from toolkit.recipe.model import ModelSection, shape_of
from toolkit.section import parse_section

PLAIN = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


def test_a_folders_own_measures_stand_before_the_recipes(tmp_path: Path):
    config = {**PLAIN, "hidden_size": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    config |= {"rope_parameters": {"rope_theta": 5e5}, "model_type": "mixtral"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelSection(path=tmp_path, shape=ShapeSection(**PLAIN))
    shape = shape_of(model)
    assert shape is not None
    assert (shape.hidden_size, shape.num_experts, shape.num_experts_per_tok) == (4, 4, 2)
    assert shape.rope_theta == 5e5


def test_a_declared_shape_stands_in_for_a_model_elsewhere(tmp_path: Path):
    assert shape_of(ModelSection(hub="a/b", shape=ShapeSection(**PLAIN))) == ShapeSection(**PLAIN)
    assert shape_of(ModelSection(hub="a/b")) is None


def test_a_folder_without_measures_names_the_missing_one(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**PLAIN, "vocab_size": None}))
    with pytest.raises(ConfigError, match="vocab_size: is missing"):
        shape_of(ModelSection(path=tmp_path))


@pytest.mark.parametrize("more", [{"num_experts": 4}, {"num_experts": 2, "num_experts_per_tok": 3}])
def test_experts_that_do_not_add_up(more: dict[str, int]):
    with pytest.raises(ConfigError, match="num_experts_per_tok"):
        parse_section(ShapeSection, {**PLAIN, **more}, where="x", what="shape")
