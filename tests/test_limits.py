"""What asks for more than it may is refused by its size, or in its time."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toolkit import tokenizer_files
from toolkit.bounded import BoundError, bounded_template
from toolkit.checkpoint.config import ShapeSection
from toolkit.checkpoint.model_values import model_value_faults
from toolkit.data.config import StageSection
from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.evaluate.config import EvaluateSection
from toolkit.limits import LIMITS, limit, refuse_beyond_memory
from toolkit.load_yaml import (
    load_yaml,
    load_yaml_documents,
    parse_json,
    parse_yaml,
    read_json,
    refuse_hostile_yaml,
)
from toolkit.search.config import SearchSection
from toolkit.search.sampler import grid_points
from toolkit.search.space import load_spaces
from toolkit.section import Section, parse_section
from toolkit.shipped import shipped_folder
from toolkit.tokenizer_files import check_tokenizer_file
from toolkit.train.config import LoraSection, TrainSection
from toolkit.train.scratch import random_llama
from toolkit.train.trainable import prepare_model

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
    began = time.process_time()
    with pytest.raises(ConfigError, match=words) as raised:
        parse_yaml(text, "m.yaml")
    assert str(raised.value).startswith("m.yaml: ")
    assert len(str(raised.value)) < 500
    assert time.process_time() - began < 20


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


def test_the_mark_of_windows_editors(tmp_path: Path):
    path = tmp_path / "c.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbf" + b"a: 1")
    assert load_yaml(path) == {"a": 1}


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLKIT_MAX_YAML_BYTES", "10")
    (tmp_path / "c.yaml").write_text("# a comment\n" * 5)
    for load in (load_yaml, load_yaml_documents, refuse_hostile_yaml):
        with pytest.raises(ConfigError, match=r"has 60 bytes; at most 10 .*YAML_BYTES"):
            load(tmp_path / "c.yaml")
    # It says that it has no bytes, and has no end.
    with pytest.raises(ConfigError, match="/dev/zero: has more than 10 bytes; at most 10 are"):
        load_yaml(Path("/dev/zero"))


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


@pytest.mark.parametrize(("trial", "words"), [("os.abort()", "signal 6"), ("os._exit(1)", "")])
def test_a_tokenizer_that_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: str, words: str
):
    monkeypatch.setattr(tokenizer_files, "_TRIAL", f"import os; {trial}")
    path = tmp_path / "tokenizer.json"
    risky = replaces("b", 1, {"Regex": "(a+)+"})
    path.write_text(
        json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, **risky})
    )
    if not words:
        check_tokenizer_file(path)  # an error in it is for the library to say
        return
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
    began = time.process_time()
    with pytest.raises(BoundError, match="TOOLKIT_MAX_TEMPLATE"), bounded_template():
        compiled.render()
    assert time.process_time() - began < 60


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    """What work raises in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).exception()


def render_in_bounds(template: str) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    with bounded_template():
        ImmutableSandboxedEnvironment().from_string(template).render()


def test_templates_outside_the_main_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLKIT_MAX_TEMPLATE_SECONDS", "1")
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    error = in_a_thread(lambda: render_in_bounds(endless))
    assert isinstance(error, BoundError)
    assert "TOOLKIT_MAX_TEMPLATE_SECONDS" in str(error)
    assert in_a_thread(lambda: render_in_bounds("{{ 1 }}")) is None


def test_a_timer_of_somebody_else_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLKIT_MAX_TEMPLATE_SECONDS", "1")
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        with pytest.raises(BoundError):
            render_in_bounds(
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
            )
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_blocks_that_end_as_the_time_does_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    # Whether in time or not, no error of the timer reaches what comes after the block.
    monkeypatch.setattr(
        "toolkit.bounded.limit", lambda name: 0.02 if "SECONDS" in name else 1 << 30
    )
    monkeypatch.setattr("toolkit.bounded.raise_hint", lambda name: name)

    def work() -> None:
        for _ in range(30):
            end = time.monotonic() + 0.0198
            with contextlib.suppress(BoundError), bounded_template():
                while time.monotonic() < end:
                    pass
            sum(range(1000))

    assert in_a_thread(work) is None


def test_memory_bounds_that_overlap_are_lifted():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    first, second = bounded_template(), bounded_template()
    first.__enter__()
    held = resource.getrlimit(resource.RLIMIT_AS)
    assert held != before
    in_a_thread(second.__enter__)
    first.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_AS) == held
    in_a_thread(partial(second.__exit__, None, None, None))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_every_limit_is_documented():
    page = (Path(__file__).parent.parent / "docs" / "limits.md").read_text(encoding="utf-8")
    for name in LIMITS:
        assert f"TOOLKIT_MAX_{name}" in page


COUNTS: list[tuple[type[Section], dict[str, Any], str]] = [
    (TrainSection, {"epochs": 10**9}, "epochs: at most 1,000,000 are taken; set TOOLKIT_MAX_COUNT"),
    (TrainSection, {"global_batch_size": 10**15}, "TOOLKIT_MAX_COUNT"),
    (TrainSection, {"micro_batch_size": 10**9}, "TOOLKIT_MAX_COUNT"),
    (TrainSection, {"lora": {"rank": 10**9}}, r"lora\.rank: .*TOOLKIT_MAX_COUNT"),
    (TrainSection, {"block_expansion": {"num_blocks": 10**9}}, "TOOLKIT_MAX_COUNT"),
    (TrainSection, {"forgetting_monitor": {"evaluations": 10**9}}, "TOOLKIT_MAX_COUNT"),
    (TrainSection, {"stages": {"a": {"max_position_embeddings": 10**9}}}, "TOOLKIT_MAX_TOKENS"),
    (EvaluateSection, {"window_tokens": 10**9}, "TOOLKIT_MAX_TOKENS"),
    (EvaluateSection, {"batch_tokens": 10**9}, "TOOLKIT_MAX_TOKENS"),
    (EvaluateSection, {"bootstrap_resamples": 10**9}, "TOOLKIT_MAX_COUNT"),
    (EvaluateSection, {"retention": {"max_new_tokens": 10**9}}, "TOOLKIT_MAX_TOKENS"),
    (SearchSection, {"num_trials": 10**9}, "TOOLKIT_MAX_CANDIDATES"),
    (SearchSection, {"grid_points": 10**9}, "TOOLKIT_MAX_CANDIDATES"),
    (SearchSection, {"workers": 10**9}, "TOOLKIT_MAX_WORKERS"),
    (
        StageSection,
        {"name": "a", "tokens": 1, "mixture": {"a": 1}, "sequence_length": 10**9},
        "TOKENS",
    ),
]


@pytest.mark.parametrize(("section", "values", "words"), COUNTS)
def test_huge_numbers_of_a_recipe(section: type[Section], values: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words) as raised:
        parse_section(section, values, where="r.yaml", what="recipe")
    assert "got 1,000,000,000" in str(raised.value)


def test_numbers_are_raised_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLKIT_MAX_COUNT", "2000000")
    assert TrainSection(epochs=2_000_000).epochs == 2_000_000


def test_what_memory_can_never_hold():
    refuse_beyond_memory(1 << 20, "a model")
    with pytest.raises(ConfigError, match=r"^a model would take 1024\.0 TiB of memory, and this"):
        refuse_beyond_memory(float(1 << 50), "a model")


def test_a_model_from_scratch_that_memory_cannot_hold():
    measures = {"hidden_size": 1 << 20, "num_hidden_layers": 8, "num_attention_heads": 8}
    shape = ShapeSection(
        **measures, intermediate_size=1 << 21, vocab_size=1000, max_position_embeddings=64
    )
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=0, pad_token_id=None)
    with pytest.raises(ConfigError, match=r"model\.scratch\.shape: .* parameters would take"):
        random_llama(shape, 0, tokenizer)


def test_a_rank_that_memory_cannot_hold():
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(1 << 20, 1 << 20))
    with pytest.raises(ConfigError, match=r"train\.lora\.rank: 1,000,000: an adapter of one layer"):
        prepare_model(model, TrainSection(lora=LoraSection(rank=1_000_000)))


def test_a_grid_of_too_many_points(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLKIT_MAX_CANDIDATES", "20")
    (space,) = load_spaces(["ties"], [shipped_folder("merges")], {})
    assert len(grid_points(space, 3)) <= 20
    with pytest.raises(ConfigError, match=r"search\.grid_points: the grid of ties has \d+ points"):
        grid_points(space, 10)
