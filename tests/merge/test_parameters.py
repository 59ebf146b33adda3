"""Precedence, filters and gradients, worked by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from toolkit.errors import ConfigError
from toolkit.merge.parameters import evaluate_setting, resolve
from toolkit.merge.registry import get_method

WEIGHT = get_method("ties").parameters["weight"]
NORMALIZE = get_method("ties").parameters["normalize"]


@pytest.mark.parametrize(("t", "value"), [(0.0, 0.25), (1 / 3, 0.5), (0.5, 0.5), (1.0, 0.0)])
def test_a_gradient_is_interpolated_over_depth(t: float, value: float):
    gradient = [0.25, 0.5, 0.5, 0.0]
    assert evaluate_setting(gradient, "x", t) == pytest.approx(value)


def test_the_first_matching_filter_counts():
    setting = [
        {"filter": "mlp", "value": [0.0, 1.0]},
        {"filter": "self_attn", "value": 0.5},
        {"value": 0.9},
    ]
    assert evaluate_setting(setting, "model.layers.0.mlp.up_proj", 0.5) == 0.5
    assert evaluate_setting(setting, "model.layers.0.self_attn.q_proj", 0.5) == 0.5
    assert evaluate_setting(setting, "model.norm", 0.0) == 0.9
    assert evaluate_setting(setting[:1], "model.norm", 0.0) is None


def test_the_nearest_scope_counts_and_one_without_a_match_is_passed_over():
    scopes = [{"weight": {"filter": "mlp", "value": 0.1}}, None, {"weight": 0.7}]
    assert resolve(WEIGHT, scopes, "a.mlp", 0.0) == 0.1
    assert resolve(WEIGHT, scopes, "a.attn", 0.0) == 0.7


def test_defaults_and_types():
    assert resolve(NORMALIZE, [], "x", 0.0) is True
    assert resolve(NORMALIZE, [{"normalize": 0}], "x", 0.0) is False
    assert resolve(WEIGHT, [{"weight": "1e-1"}], "x", 0.0) == 0.1
    with pytest.raises(ConfigError, match="weight: is needed for x"):
        resolve(WEIGHT, [], "x", 0.0)
    with pytest.raises(ConfigError, match="must be of type float"):
        resolve(WEIGHT, [{"weight": "much"}], "x", 0.0)
    with pytest.raises(ConfigError, match="must be of type bool"):
        resolve(NORMALIZE, [{"normalize": "maybe"}], "x", 0.0)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert resolve(WEIGHT, [{"weight": ["1e-1", "3e-1"]}], "x", 0.5) == pytest.approx(0.2)


@pytest.mark.parametrize("text", ["3e38", "-3e38", "1e400", "9" * 40])
def test_a_number_in_text_is_bound_as_any_other(text: str):
    with pytest.raises(ConfigError, match="weight: must be"):
        resolve(WEIGHT, [{"weight": text}], "x", 0.0)
    with pytest.raises(ConfigError, match="weight: must be"):
        resolve(WEIGHT, [{"weight": 10**400}], "x", 0.0)


def test_flags_hold_from_their_place_to_the_next():
    flags = [{"normalize": [True, False, True]}]
    found = [resolve(NORMALIZE, flags, "x", t) for t in (0.0, 0.49, 0.5, 0.99, 1.0)]
    assert found == [True, True, False, False, True]


def test_settings_have_mergekit_s_values():
    from mergekit.config import ConditionalParameter
    from mergekit.config import evaluate_setting as theirs

    chance = random.Random(0)  # noqa: S311  (cases, not secrets)

    def scalar() -> Any:
        return chance.choice([chance.random(), chance.randint(-2, 2), f"{chance.random():.3e}"])

    def value() -> Any:
        return (
            scalar() if chance.random() < 0.4 else [scalar() for _ in range(chance.randint(1, 5))]
        )

    for _ in range(300):
        cases = [{"filter": f, "value": value()} for f in ("mlp", "attn", "*", None)]
        filtered = chance.sample(cases, chance.randint(1, 4))
        setting: Any = filtered if chance.random() < 0.5 else value()
        name, t = chance.choice(["layers.0.mlp.w", "layers.0.attn.w", "norm"]), chance.random()
        wrapped = (
            [ConditionalParameter(**case) for case in filtered] if setting is filtered else setting
        )
        assert evaluate_setting(setting, name, t, float) == theirs(name, wrapped, t, validate=float)
