"""What asks for more than it may is refused by its size, or in its time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from toolkit.bounded import BoundError, bounded_template
from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.limits import LIMITS, limit
from toolkit.model_values import model_value_faults
from toolkit.plain import parse_json, parse_yaml, read_json
from toolkit.tokenizer_files import check_tokenizer_file

NINE = ",".join
LAUGHS = "a: &a [1,2,3,4,5,6,7,8,9]\n" + "".join(
    f"{name}: &{name} [{NINE([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases stand for"),
        (MERGES, "aliases stand for"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: " + "{b: " * 200 + "}" * 200, "nested too deeply"),
        ("a: &a [*a]", "an alias stands within"),
        ("a: *gone", "undefined alias"),
        ("a: 2001-99-99", "month"),
        ("a: !!int ''", "not valid YAML"),
        ("a: \0", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("- a", "must hold keys and values"),
        ("a: 1\n---\nb: 2", "several documents"),
        ("a: " + "x" * (3 << 20), "TOOLKIT_MAX_YAML_BYTES"),
    ],
)
def test_yaml(text: str, words: str):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=words) as raised:
        parse_yaml(text, "m.yaml")
    assert str(raised.value).startswith("m.yaml: ")
    assert len(str(raised.value)) < 500
    assert time.monotonic() - began < 20


def test_aliases_within_reason():
    assert parse_yaml("a: &a {b: 1}\nc: {<<: *a, d: [*a, *a]}", "m.yaml")["c"] == {
        "b": 1,
        "d": [{"b": 1}, {"b": 1}],
    }


def test_a_limit_is_raised_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLKIT_MAX_NESTING", "300")
    assert parse_yaml("a: " + "[" * 200 + "]" * 200, "m.yaml")
    monkeypatch.setenv("TOOLKIT_MAX_LINE_BYTES", "2 GiB")
    assert limit("LINE_BYTES") == 2 << 30
    monkeypatch.setenv("TOOLKIT_MAX_LINE_BYTES", "much")
    with pytest.raises(ConfigError, match="TOOLKIT_MAX_LINE_BYTES: must be a positive"):
        limit("LINE_BYTES")


@pytest.mark.parametrize("depth", [150, 990, 100_000])
def test_json_depth(depth: int):
    with pytest.raises(ToolkitError, match=r"^c\.json: is nested too deeply"):
        parse_json("[" * depth + "]" * depth, "c.json")
    assert parse_json("[" * 90 + "]" * 90, "c.json")


def test_json_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "c.json"
    for data, words in ((b"{", "not valid JSON"), (b"\xff", "not UTF-8"), (b"", "not valid JSON")):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=words):
            read_json(path, CheckpointError)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path, CheckpointError)
    monkeypatch.setenv("TOOLKIT_MAX_JSON_BYTES", "10")
    path.write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(CheckpointError, match="has 15 bytes"):
        read_json(path, CheckpointError)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"vocab_size": -5}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"text_config": {"hidden_size": 1.5}}, "text_config.hidden_size"),
        ({"architectures": [1]}, "architectures"),
        ({"architectures": "Llama"}, "architectures"),
        ({"model_type": 3}, "model_type"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_scaling": []}, "rope_scaling"),
    ],
)
def test_values_of_a_config(values: dict[str, object], key: str):
    assert [name for name, _ in model_value_faults(values)] == [key]


def replaces(content: str, times: int, pattern: object = None) -> dict[str, object]:
    step = {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [step] * times}}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (replaces("a" * 10, 10), "lengthens a text"),
        (replaces("", 1001), "steps"),
        (replaces("ab", 11, {"Regex": "."}), "lengthens a text"),
        ({"padding": {"strategy": {"Fixed": 10**12}}}, "pads a text"),
        ({"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 10**9}}, "pads a text"),
        ({"added_tokens": [{"id": 10**9, "content": "x"}]}, "has the id"),
        ({"added_tokens": [{"id": "x", "content": "x"}]}, "has the id"),
    ],
)
def test_tokenizers_that_grow(tmp_path: Path, more: dict[str, object], words: str):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, **more}))
    with pytest.raises(CheckpointError, match=words):
        check_tokenizer_file(path)


def test_a_plain_tokenizer_passes(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    more = replaces("\u2581", 3, {"String": " "})
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, **more}))
    check_tokenizer_file(path)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 11 }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_templates(template: str, monkeypatch: pytest.MonkeyPatch):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    monkeypatch.setenv("TOOLKIT_MAX_TEMPLATE_SECONDS", "2")
    compiled = ImmutableSandboxedEnvironment().from_string(template)
    began = time.monotonic()
    with pytest.raises(BoundError, match="TOOLKIT_MAX_TEMPLATE"), bounded_template():
        compiled.render()
    assert time.monotonic() - began < 60


def test_every_limit_is_documented():
    page = (Path(__file__).parent.parent / "docs" / "limits.md").read_text(encoding="utf-8")
    for name in LIMITS:
        assert f"TOOLKIT_MAX_{name}" in page
