"""Search notation: ranges, grids, choices, complements, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.errors import ConfigError
from toolkit.search.space import (
    alphas_by_name,
    endpoint,
    load_spaces,
    read_space,
    sweep_point,
)
from toolkit.search.unknowns import Options, Range

MERGES = Path(__file__).parent.parent.parent / "merges"
SHIPPED = (
    *("linear", "slerp", "ties", "dare_ties", "della", "lines", "layer-profile"),
    *("llama3-sec", "llama3-sec-three", "residual", "residual-layers"),
    *("specialists", "specialists-ties"),
)


def merge(weight: object, other: object = 1.0, **changes: Any) -> dict[str, Any]:
    models = [
        {"model": "general", "parameters": {"weight": other}},
        {"model": "specialist", "parameters": {"weight": weight}},
    ]
    return {"merge_method": "linear", "models": models, **changes}


def test_every_shipped_merge_is_valid_at_its_ends_and_between():
    assert sorted(path.stem for path in MERGES.glob("*.yaml")) == sorted(SHIPPED)
    for space in load_spaces(SHIPPED, [MERGES], ["base"]):
        count = len(space.unknowns)
        middle = [space.candidate(space.at([share] * count)).key for share in (0.0, 0.5, 1.0)]
        assert len(set(middle)) == (3 if count else 1)


def test_the_published_profile_stands_there():
    (space,) = load_spaces(("llama3-sec",), [MERGES])
    settings = space.candidate({}).config.models[0].parameters
    values = {case.get("filter"): case["value"] for case in settings["weight"]}
    assert values["self_attn"] == [0.25, 0.5, 0.5, 0.0]
    assert values["mlp"] == values[None] == [0.25, 0.5, 0.5, 0.25]
    assert settings["density"] == 0.75

    (three,) = load_spaces(("llama3-sec-three",), [MERGES], ["base"])
    config = three.candidate({}).config
    assert (config.base_model, config.parameters) == ("base", {"normalize": True})
    profiles = {
        item.model: {case.get("filter"): case["value"] for case in item.parameters["weight"]}
        for item in config.models
    }
    assert profiles["specialist"] == values
    assert {key: [1 - n for n in row] for key, row in profiles["general"].items()} == values
    assert [item.parameters["density"] for item in config.models] == [0.75, 1.0]


def test_the_short_form_is_a_range():
    space = read_space("m", merge({"search": [0.2, 1.0]}), "m.yaml")
    assert space.unknowns == {"weight": Range(0.2, 1.0)}
    assert space.candidate({"weight": 0.25}).name == "m weight=0.25"


def test_ranges_by_logarithm_and_of_whole_numbers():
    assert Range(1, 8, integer=True).at(0.4) == 4
    assert Range(0.01, 1.0, log=True).at(0.5) == 0.1
    assert Range(0.01, 1.0, log=True).share(0.1) == pytest.approx(0.5)
    wanted = {"range": [1, 100], "log": True, "integer": True, "name": "n"}
    assert read_space("m", merge({"search": wanted}), "m.yaml").at([0.5]) == {"n": 10}


def test_a_number_found_is_all_in_the_name():
    assert Range(0.0, 1.0).at(1 / 3) == 0.3333
    space = read_space("m", merge({"search": [0.0, 1.0]}), "m.yaml")
    assert space.candidate(space.at([1 / 3])).name == "m weight=0.3333"


def test_a_grid_is_sorted_and_a_choice_is_not():
    grid = read_space("m", merge({"search": {"grid": [0.8, 0.4]}}), "m.yaml").unknowns["weight"]
    assert grid == Options((0.4, 0.8), ordered=True)
    assert [grid.at(share) for share in (0.0, 0.49, 0.5, 1.0)] == [0.4, 0.4, 0.8, 0.8]
    given = merge(1.0, parameters={"normalize": {"search": {"choice": [True, False]}}})
    assert read_space("m", given, "m.yaml").unknowns["normalize"].values == (True, False)


def test_a_complement_is_what_is_left():
    weight = {"search": {"name": "alpha", "range": [0.0, 1.0]}}
    space = read_space("m", merge(weight, {"search": "1 - alpha"}), "m.yaml")
    candidate = space.candidate({"alpha": 0.3})
    assert candidate.name == "m alpha=0.3"
    assert [m.parameters["weight"] for m in candidate.config.models] == [0.7, 0.3]


def test_inside_gradients_and_filters():
    setting = [
        {"filter": "mlp", "value": [0.0, {"search": [0.1, 0.2]}, {"search": [0.3, 0.4]}]},
        {"value": {"search": {"name": "rest", "grid": [1.0]}}},
    ]
    space = read_space("m", merge(setting), "m.yaml")
    assert list(space.unknowns) == ["weight_0_1", "weight_0_2", "rest"]
    candidate = space.candidate({"weight_0_1": 0.15, "weight_0_2": 0.35, "rest": 1.0})
    weight = candidate.config.models[1].parameters["weight"]
    assert weight == [{"filter": "mlp", "value": [0.0, 0.15, 0.35]}, {"value": 1.0}]


def test_the_method_itself_and_only_its_own_parameters():
    models = [
        {
            "model": "specialist",
            "parameters": {"weight": {"search": [0.5, 1.0]}, "density": {"search": [0.2, 1.0]}},
        }
    ]
    given = {
        "merge_method": {"search": {"choice": ["ties", "slerp"]}},
        "base_model": "general",
        "models": models,
        "parameters": {"t": {"search": [0.0, 1.0]}, "normalize": False},
    }
    space = read_space("m", given, "m.yaml")
    values = {"merge_method": "slerp", "weight": 0.7, "density": 0.4, "t": 0.5}
    slerp = space.candidate(values)
    assert slerp.name == "m merge_method=slerp t=0.5"
    assert slerp.config.models[0].parameters == {}
    assert slerp.config.parameters == {"t": 0.5}
    ties = space.candidate({**values, "merge_method": "ties"})
    assert dict(ties.parameters) == {"merge_method": "ties", "weight": 0.7, "density": 0.4}
    # What the chosen method lacks makes no other merge of it.
    assert space.candidate({**values, "weight": 0.9}).key == slerp.key


def test_endpoints_and_the_sweep_are_one_family():
    assert sweep_point(0.0).key == endpoint("general").key
    assert sweep_point(1.0).key == endpoint("specialist").key
    (linear,) = load_spaces(("linear",), [MERGES])
    assert linear.candidate({"alpha": 0.6}).key == sweep_point(0.6).key


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ([1.0, 0.5], "range: is reversed"),
        ([0.5, 0.5], "range: is empty"),
        ([0.5], "range: must be two numbers"),
        ({"range": [0, 1], "log": True}, "must be above 0"),
        ({"range": [0.5, 2], "integer": True}, "must be whole numbers"),
        ({"range": [0, 1], "log": "yes"}, "log: must be true or false"),
        ({"range": [0, 1], "lgo": True}, "lgo: unknown key; did you mean log?"),
        ({"grid": []}, "grid: must be a list of numbers"),
        ({"grid": ["x"]}, "grid: must be a list of numbers"),
        ({"choice": []}, "choice: must be a list of values"),
        ({"gird": [1]}, "must be [low, high]"),
        ({"grid": [1], "name": "a b"}, "name: must be a word"),
        ("1 - beta", "'beta', which is not searched"),
    ],
)
def test_bad_notation_is_named_at_its_key(search: object, words: str):
    with pytest.raises(ConfigError) as caught:
        read_space("m", merge({"search": search}), "merges/m.yaml")
    assert words in str(caught.value)
    assert "merges/m.yaml: models.1.parameters.weight.search" in str(caught.value)


def test_names_must_differ():
    with pytest.raises(ConfigError, match="'weight' stands twice"):
        read_space("m", merge({"search": [0, 1]}, {"search": [0, 1]}), "m.yaml")


def test_a_value_that_a_method_does_not_know_is_found_when_the_file_is_read():
    given = merge(1.0, merge_method={"search": {"choice": ["linear", "linaer"]}})
    with pytest.raises(ConfigError, match="unknown method 'linaer'"):
        read_space("m", given, "m.yaml")


def test_an_unknown_file_gets_a_suggestion(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean linear"):
        load_spaces(("liner",), [MERGES])
    given = merge(1.0)
    given["models"][0]["model"] = "other"
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError, match="names the model 'other'"):
        load_spaces(("m",), [tmp_path])


def test_the_recipe_s_rounding_is_that_of_every_merge_that_has_none():
    (linear,) = load_spaces(("linear",), [MERGES], rounding="stochastic")
    found, plain = linear.candidate({"alpha": 0.6}), sweep_point(0.6, "stochastic")
    assert found.config.rounding == plain.config.rounding == "stochastic"
    assert found.key == plain.key != sweep_point(0.6).key
    own = read_space(
        "m", {**merge({"search": [0, 1]}), "rounding": "nearest"}, "m.yaml", (), "stochastic"
    )
    assert own.candidate({"alpha": 0.6, "weight": 0.6}).config.rounding == "nearest"
    # Keys and caches from before there was the word hold.
    assert "rounding" not in sweep_point(0.6).config.model_dump(mode="json")


def test_a_file_speaks_of_all_specialists():
    names = ("finance", "case-law", "chat")
    weights = {"search": {"range": [0.1, 1.0], "log": True}}
    template = {
        "merge_method": "ties",
        "base_model": "general",
        "models": [
            {"model": "specialists", "parameters": {"weight": weights, "density": 0.5}},
        ],
    }
    space = read_space("all", template, "all.yaml", specialists=names)
    assert list(space.unknowns) == ["weight_finance", "weight_case_law", "weight_chat"]
    config = space.candidate(dict(zip(space.unknowns, (0.1, 0.2, 0.3), strict=True))).config
    assert config.model_names() == [*names, "general"]
    # With one specialist the same file speaks of that one.
    assert list(read_space("all", template, "all.yaml").unknowns) == ["weight_specialist"]


def test_weights_on_the_simplex():
    template = {
        "merge_method": "task_arithmetic",
        "base_model": "general",
        "models": [{"model": "specialists", "parameters": {"weight": {"search": "simplex"}}}],
        "parameters": {"normalize": False},
    }
    space = read_space("all", template, "all.yaml", specialists=("a", "b", "c"))
    assert list(space.unknowns) == ["weight_part_a", "weight_part_b"]
    candidate = space.candidate({"weight_part_a": 0.5, "weight_part_b": 0.5})
    models = candidate.config.models or ()
    weights = [float(model.parameters["weight"]) for model in models]  # type: ignore[arg-type]
    assert weights == pytest.approx([0.292893, 0.353553, 0.353553], abs=1e-5)
    assert sum(weights) == pytest.approx(1.0)
    for parts in ({"weight_part_a": 1.0, "weight_part_b": 0.3}, dict.fromkeys(space.unknowns, 0.0)):
        config = space.candidate(parts).config
        found = [float(m.parameters["weight"]) for m in config.models or ()]  # type: ignore[arg-type]
        assert sum(found) == pytest.approx(1.0)


def test_names_that_give_one_word_stay_apart():
    weight = {"search": "simplex"}
    template = {
        "merge_method": "linear",
        "models": [{"model": "specialists", "parameters": {"weight": weight}}],
    }
    names = ("law-eu", "law_eu", "news")
    space = read_space("all", template, "all.yaml", specialists=names)
    assert list(space.unknowns) == ["weight_part_law_eu", "weight_part_law_eu_2"]
    entry = {"model": "specialists", "parameters": {"weight": {"search": [0.0, 1.0]}}}
    ranges = {**template, "models": [entry]}
    own = read_space("all", ranges, "all.yaml", specialists=names)
    assert list(own.unknowns) == ["weight_law_eu", "weight_law_eu_2", "weight_news"]


def test_what_has_an_alpha_and_is_no_plain_mean_is_not_on_the_sweep():
    given = merge({"search": {"name": "alpha", "range": [0, 1]}})
    given["models"][0]["parameters"]["weight"] = 1.0
    candidate = read_space("linear", given, "linear.yaml").candidate({"alpha": 0.9})
    assert candidate.name == sweep_point(0.9).name
    assert candidate.name not in alphas_by_name([candidate])
    assert alphas_by_name([sweep_point(0.9)])["linear alpha=0.9"] == 0.9


def test_all_specialists_where_one_model_is_meant():
    template = {"merge_method": "ties", "base_model": "specialists", "models": []}
    with pytest.raises(ConfigError, match=r"all\.yaml: base_model: means all specialists"):
        read_space("all", template, "all.yaml", specialists=("a", "b"))
