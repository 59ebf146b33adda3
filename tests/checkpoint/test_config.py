"""Measures of a model out of its config.json, however its values are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BloomConfig

from toolkit.checkpoint.config import ShapeSection, shape_of_folder
from toolkit.errors import ConfigError

VALUES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 320, "max_position_embeddings": 256,
}  # fmt: skip


def shape(folder: Path, **values: object) -> ShapeSection:
    given = {key: value for key, value in {**VALUES, **values}.items() if value != "left out"}
    (folder / "config.json").write_text(json.dumps(given))
    return shape_of_folder(folder)


def test_a_null_hides_no_other_name(tmp_path: Path):
    experts = {"num_experts": None, "num_local_experts": 8, "num_experts_per_tok": 2}
    assert shape(tmp_path, **experts).num_experts == 8
    rope = {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5}}
    assert shape(tmp_path, **rope).rope_theta == 5e5
    assert shape(tmp_path).num_experts is None


def test_shared_experts_by_their_width(tmp_path: Path):
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    of_width = shape(tmp_path, **experts, shared_expert_intermediate_size=32)
    assert of_width.num_shared_experts == 2
    counted = shape(tmp_path, **experts, shared_expert_intermediate_size=32, n_shared_experts=1)
    assert counted.num_shared_experts == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"intermediate_size": "left out"}, "intermediate_size"),
        ({"moe_intermediate_size": [16, 16]}, "moe_intermediate_size"),
    ],
)
def test_a_width_that_is_missing_or_a_list_is_named(
    tmp_path: Path, values: dict[str, object], words: str
):
    with pytest.raises(ConfigError, match=words):
        shape(tmp_path, shared_expert_intermediate_size=32, **values)


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ({"model_type": "gpt2"}, 128),
        ({"model_type": "gpt2", "n_inner": 48}, 48),
        ({"model_type": "gptj", "n_inner": None}, 128),
    ],
)
def test_names_that_a_class_has_of_its_own(tmp_path: Path, values: dict[str, object], width: int):
    names = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320}
    (tmp_path / "config.json").write_text(json.dumps({**names, **values}))
    found = shape_of_folder(tmp_path)
    assert (found.hidden_size, found.num_hidden_layers, found.num_attention_heads) == (32, 2, 4)
    assert (found.max_position_embeddings, found.intermediate_size) == (64, width)


def test_a_width_that_no_class_tells_is_not_guessed(tmp_path: Path):
    BloomConfig(hidden_size=32, n_layer=2, n_head=4).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="intermediate_size"):
        shape_of_folder(tmp_path)
