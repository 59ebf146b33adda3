"""Measures of a model out of its config.json, however its values are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
