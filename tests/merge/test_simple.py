"""Simple configurations answer as the whole dialect's would, and whatever has a fault is none."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest

from toolkit.errors import ConfigError
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.parameters import parameter_places
from toolkit.merge.run import to_yaml
from toolkit.merge.simple import simple_config

PLAIN: dict[str, Any] = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}

SIMPLE: list[dict[str, Any]] = [
    {},
    {"dtype": "bfloat16", "out_dtype": "torch.float16"},
    {"base_model": "base", "parameters": {"normalize": False, "lambda": 1}},
    {"base_model": "b", "dtype": None, "parameters": None, "out_dtype": None},
    {"merge_method": "of nobody", "parameters": {}},
    {"models": [{"model": "a+lora", "parameters": {"weight": [0, 0.5, 1]}}, {"model": "a+lora"}]},
    {
        "models": [
            {"model": "a@main", "parameters": None},
            {
                "model": "b",
                "parameters": {
                    "density": 1e-3,
                    "weight": [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 1.0}],
                    "kind": {"value": "text", "filter": "up"},
                },
            },
        ]
    },
]


@pytest.mark.parametrize("changes", SIMPLE, ids=str)
def test_it_answers_as_the_whole_dialect_would(changes: dict[str, Any]):
    data = PLAIN | changes
    found = simple_config(copy.deepcopy(data))
    whole = parse_merge_config(copy.deepcopy(data), where="m.yml")
    assert found is not None
    for name in set(MergeConfig.model_fields) - {"models"}:
        assert getattr(found, name) == getattr(whole, name), name
    assert found.models is not None
    assert whole.models is not None
    assert [(m.model, m.parameters) for m in found.models] == [
        (m.model, m.parameters) for m in whole.models
    ]
    assert found.model_names() == whole.model_names()
    assert found.leader() == whole.leader()
    assert to_yaml(found) == to_yaml(whole)
    places, expected = (
        list(parameter_places(config.model_dump(exclude_none=True))) for config in (found, whole)
    )
    assert places == expected


def test_it_has_every_key_of_the_dialect():
    found = simple_config(PLAIN)
    assert {field.name for field in fields(found)} == set(MergeConfig.model_fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_source": "union"},
        {"tokenizer": {"source": "base"}},
        {"chat_template": "auto"},
        {"models": [{"model": {"model": "a", "lora": "b"}}, {"model": "b"}]},
        {"base_model": {"model": {"path": "a"}}},
        {"parameters": {"weight": [{"filter": None, "value": 1}]}},
    ],
    ids=str,
)
def test_other_forms_are_left_to_the_whole_dialect(changes: dict[str, Any]):
    assert simple_config(PLAIN | changes) is None
    parse_merge_config(PLAIN | changes, where="m.yml")  # without a fault


@pytest.mark.parametrize(
    "changes",
    [
        {"modles": []},
        {"models": []},
        {"models": {"model": "a"}},
        {"models": ["a"]},
        {"models": [{"model": "a", "weight": 1}]},
        {"models": [{"parameters": {}}]},
        {"models": [{"model": ""}]},
        {"models": [{"model": 3}]},
        {"models": [{"model": "a", "parameters": [1]}]},
        {"models": [{"model": "a", "parameters": {"weight": None}}]},
        {"models": [{"model": "a", "parameters": {"weight": float("nan")}}]},
        {"models": [{"model": "a", "parameters": {"weight": []}}]},
        {"models": [{"model": "a", "parameters": {"weight": [1, {"value": 2}]}}]},
        {"models": [{"model": "a", "parameters": {"weight": [{"filter": "mlp"}]}}]},
        {"models": [{"model": "a", "parameters": {1: 2}}]},
        {"models": None},
        {"base_model": 1},
        {"base_model": ""},
        {"dtype": "float31"},
        {"dtype": 16},
        {"merge_method": 1},
        {"merge_method": None},
        {"parameters": 1},
        {"slices": []},
    ],
    ids=str,
)
def test_faults_are_left_to_the_whole_dialect(changes: dict[str, Any]):
    assert simple_config(PLAIN | changes) is None
    with pytest.raises(ConfigError):
        parse_merge_config(PLAIN | changes, where="m.yml")
