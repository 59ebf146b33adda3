"""The dialect: what may be written, and how faults in it are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.checkpoint.references import ModelReference, PathAndRevision, parse_reference
from toolkit.errors import ConfigError
from toolkit.merge.config import MergeConfig, load_merge_config, parse_merge_config

MODELS = [{"model": "a"}, {"model": "b"}]


def parse(**data: Any) -> MergeConfig:
    return parse_merge_config({"merge_method": "linear", "models": MODELS, **data}, where="m.yml")


def test_every_fault_is_told_at_once(tmp_path: Path):
    path = tmp_path / "m.yml"
    path.write_text(
        "merge_method: linear\nmodles: []\ndtype: float31\n"
        "slices:\n- sources: [{model: a, layer_range: [4, 2]}]\n"
        "  parameters: {weight: [1, {value: 2}]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_merge_config(path)
    message = str(caught.value)
    for words in (
        f"{path} is not a valid merge configuration",
        "modles: unknown key; did you mean mod",
        "dtype: must be one of",
        "layer_range: must not end before it begins",
        "weight: mixes numbers and filters",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slices": []}, "exactly one of models, slices and modules"),
        ({"models": []}, "models is empty"),
        ({"models": None, "modules": {"x": {}}}, "exactly one of slices and models"),
        ({"tokenizer_source": "base", "tokenizer": {}}, "not both"),
        ({"tokenizer": {"tokens": {"x": {"source": {"kind": "model_token"}}}}}, "exactly one of"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "greater than 0"),
        ({"parameters": {"weight": [[1, 2]]}}, "not a list of lists"),
        ({"parameters": {"weight": float("nan")}}, "must be a finite number"),
        # float32 weights that sum to infinity made a merge of zeros, without a word
        ({"parameters": {"weight": 3e38}}, "must be at most 1e+30 in size"),
        ({"parameters": {"weight": [0.5, -(10**400)]}}, "must be at most 1e+30 in size"),
        ({"parameters": {"weight": {"filter": "mlp"}}}, "needs a value"),
        ({"parameters": {"weight": {"filter": 0.5, "value": 1}}}, "part of tensors' names"),
        ({"parameters": {"weight": {"fliter": "mlp", "value": 1}}}, "unknown key 'fliter'"),
        ({"models": [{"model": {"model": "a", "lroa": "b"}}]}, "unknown key 'lroa'"),
    ],
)
def test_faults(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
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
        {"dtype": 16},
        {"merge_method": 1},
        {"merge_method": None},
        {"parameters": 1},
        {"slices": []},
    ],
    ids=str,
)
def test_values_of_another_kind_are_faults(changes: dict[str, Any]):
    with pytest.raises(ConfigError):
        parse(**changes)


def test_keys_that_change_nothing_are_said(capsys: pytest.CaptureFixture[str]):
    parse(random_seed=0, name="x")
    said = capsys.readouterr().err
    assert "random_seed: is no part of a merge" in said
    assert "name: is passed over" in said


def test_several_merges_in_one_file(tmp_path: Path):
    path = tmp_path / "m.yml"
    path.write_text("merge_method: linear\n---\nmerge_method: linear\n")
    with pytest.raises(ConfigError, match=r"m\.yml: holds several documents \(---\)"):
        load_merge_config(path)


def test_faults_of_parameters_are_told_beside_those_of_keys(tmp_path: Path):
    path = tmp_path / "merge.yml"
    path.write_text(
        "merge_method: ties\nbase_model: a\ndtyp: float32\nparameters: {normalise: true}\n"
        "models: [{model: b, parameters: {wieght: 1, density: x}}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_merge_config(path)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert [line.partition(":")[0] for line in lines] == [
        "dtyp",
        "parameters.normalise",
        "models.0.parameters.wieght",
        "models.0.parameters.density",
    ]
    assert all("did you mean" in line for line in lines[:3])
    path.write_text("merge_method: tise\ndtyp: float32\nmodels: [{model: b}]\n")
    with pytest.raises(ConfigError, match=r"(?s)dtyp.*did you mean ties"):
        load_merge_config(path)


@pytest.mark.parametrize("layers", [[2, 0], [-1, 2], [0, 1.5], [0, 1, 2], "0-2", [True, 2], None])
def test_a_faulty_range_of_layers_is_one_line(layers: object):
    with pytest.raises(ConfigError) as caught:
        parse(slices=[{"sources": [{"model": "a", "layer_range": layers}]}])
    (line,) = str(caught.value).splitlines()[1:]
    assert "layer_range" in line
    assert "tuple" not in line


def test_the_older_form_of_a_tokenizer_source():
    assert parse(tokenizer_source="model:org/name").tokenizer_source == "org/name"
    found = parse(tokenizer={"source": "model:./b"}).tokenizer
    assert found is not None
    assert found.source == "./b"


def test_all_of_the_dialect_is_read():
    config = parse(
        base_model={"model": {"path": "org/base", "revision": "v1"}},
        dtype="torch.bfloat16",
        out_dtype="float32",
        chat_template="auto",
        tokenizer={
            "source": "union",
            "pad_to_multiple_of": 64,
            "tokens": {
                "<x>": {"source": "a", "force": True},
                "<y>": {"source": {"kind": "zero"}},
                "<z>": {"source": {"kind": "model_token", "model": "b", "token_id": 3}},
            },
        },
        models=[
            {"model": {"model": "a", "lora": {"path": "l", "revision": "r"}}},
            {"model": {"model": "b", "override_architecture": "LlamaForCausalLM"}},
        ],
    )
    assert config.dtype == "bfloat16"
    assert config.model_names() == ["a+l@r", "b", "org/base@v1"]
    assert config.leader() == "org/base@v1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/m", ModelReference(PathAndRevision("org/m"))),
        ("m@v2", ModelReference(PathAndRevision("m", "v2"))),
        ("m@v2+l@v3", ModelReference(PathAndRevision("m", "v2"), PathAndRevision("l", "v3"))),
    ],
)
def test_references(text: str, expected: ModelReference):
    assert parse_reference(text) == expected


@pytest.mark.parametrize("text", ["a+b+c", "a@b@c", "a@", "+b", "a+"])
def test_references_that_are_none(text: str):
    with pytest.raises(ConfigError, match="path@revision"):
        parse_reference(text)


def test_a_folder_s_own_name_wins(tmp_path: Path):
    folder = tmp_path / "c++@home"
    folder.mkdir()
    assert parse_reference(str(folder)).model.path == str(folder)
    assert parse_reference(f"{folder}+org/lora").adapter == PathAndRevision("org/lora")


def test_reading_a_configuration_loads_no_torch():
    code = "import sys, toolkit.merge.config; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
