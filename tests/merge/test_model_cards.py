"""Configurations of the kinds that stand on model cards, whole, against mergekit in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.families import State
from tests.helpers.mergekit_oracle import both
from tests.helpers.model_cards import card
from toolkit.errors import ConfigError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge

CARDS = {
    # parts of a gradient for one model, a filter for another, and mergekit's mask switch
    "ties": """
models:
  - model: A
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: B
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: BASE
parameters: {normalize: true, int8_mask: true}
""",
    # slices of whole models, other numbers for attention and feed-forward
    "slerp": """
slices:
  - sources:
      - model: A
        layer_range: [0, 4]
      - model: B
        layer_range: [0, 4]
merge_method: slerp
base_model: A
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
""",
    # a deeper model of layers of two, some of them scaled
    "passthrough": """
merge_method: passthrough
slices:
- sources:
  - layer_range: [0, 3]
    model: A
- sources:
  - layer_range: [1, 4]
    model: B
    parameters:
      scale:
        - filter: q_proj
          value: 0.7071067812
        - filter: k_proj
          value: 0.7071067812
        - value: 1
""",
    # the base model among the models, and a task taken away
    "task_arithmetic": """
base_model: BASE
merge_method: task_arithmetic
models:
  - model: BASE
  - model: A
    parameters: {weight: 1.0}
  - model: B
    parameters: {weight: -0.5}
parameters: {normalize: 0}
tokenizer: {source: base}
chat_template: auto
""",
    "linear": """
models:
  - model: A
    parameters: {weight: 1.0}
  - model: B
    parameters: {weight: [0.3, 1e-1]}
merge_method: linear
""",
}

WITH_IDLE_WORDS = {
    # parameters of other methods, a name, the method's own switch in quotes
    "slerp with weights": """
name: first-of-two
slices:
  - sources:
      - model: A
        layer_range: [0, 4]
        parameters: {weight: 0.3, density: 0.5}
      - model: B
        layer_range: [0, 4]
merge_method: slerp
base_model: A
parameters:
  t: 0.4
  normalize: true
  int8_mask: true
""",
    "task arithmetic with densities": """
models:
  - model: A
    parameters: {weight: 0.6, density: 0.5, gamma: 0.01}
  - model: B
    parameters: {weight: "0.3"}
merge_method: task_arithmetic
base_model: BASE
parameters: {normalize: "false", rescale: true}
""",
    "linear with a base of its own": """
models:
  - model: A
    parameters: {weight: 0.6, density: 0.9}
  - model: B
    parameters: {weight: 0.4}
merge_method: linear
parameters: {normalize: "true", int8_mask: 1}
tokenizer_source: base
""",
    # the maintainers' advice: whose head, said by a slice without layers
    "passthrough with a last slice of nothing": """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 3]}]
- sources: [{model: B, layer_range: [1, 4], parameters: {weight: 1.0}}]
- sources: [{model: A, layer_range: [4, 4]}]
""",
    # the base alone, as with an adapter baked into it
    "task arithmetic of the base alone": """
base_model: A
merge_method: task_arithmetic
parameters: {normalize: false}
slices:
- sources:
  - {model: A, layer_range: [0, 4], parameters: {weight: 1.0}}
""",
}

TIED_AT_THE_THRESHOLD = 0.02
"""Share of entries that may differ in TIES: float32 differences of near numbers tie often."""


@pytest.mark.parametrize("name", CARDS)
def test_the_same_as_mergekit(name: str, family: dict[str, State], tmp_path: Path):
    del family  # in its folders
    ours, theirs = both(card(CARDS[name], tmp_path, "float32"), tmp_path)
    assert set(ours) == set(theirs)
    for tensor, expected in theirs.items():
        close = torch.isclose(ours[tensor], expected, rtol=1e-5, atol=1e-6)
        if name == "ties":
            assert float(close.float().mean()) > 1.0 - TIED_AT_THE_THRESHOLD, tensor
        else:
            assert bool(close.all()), tensor


@pytest.mark.parametrize("name", WITH_IDLE_WORDS)
def test_idle_words_change_nothing(
    name: str,
    family: dict[str, State],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    del family
    monkeypatch.setattr("toolkit.errors._SAID", set())
    ours, theirs = both(card(WITH_IDLE_WORDS[name], tmp_path, "float32"), tmp_path)
    assert set(ours) == set(theirs)
    for tensor, expected in theirs.items():
        torch.testing.assert_close(ours[tensor], expected, rtol=1e-5, atol=1e-6)
    said = capsys.readouterr().err
    assert (
        said.count("it is passed over")
        == {
            "slerp with weights": 4,
            "task arithmetic with densities": 1,
            "linear with a base of its own": 2,
            "passthrough with a last slice of nothing": 1,
            "task arithmetic of the base alone": 0,
        }[name]
    )


def test_all_unknown_words_are_named_at_once(family: dict[str, State], tmp_path: Path):
    del family
    data = card(CARDS["linear"], tmp_path, "float32")
    data["models"][0]["parameters"]["wieght"] = 1.0
    data["parameters"] = {"nonsense": 1, "normalise": True}
    with pytest.raises(ConfigError) as caught:
        run_merge(parse_merge_config(data, where="t"), tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert ["wieght" in lines[2], "nonsense" in lines[0], "did you mean normalize" in lines[1]] == [
        True
    ] * 3


def test_a_model_listed_twice_is_said(
    family: dict[str, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    del family
    data = card(CARDS["linear"], tmp_path, "float32")
    data["models"].append(dict(data["models"][0]))
    run_merge(parse_merge_config(data, where="t"), tmp_path / "out")
    assert "is listed 2 times" in capsys.readouterr().err


@pytest.mark.parametrize("name", CARDS)
def test_float16_is_what_is_written(name: str, family: dict[str, State], tmp_path: Path):
    del family
    run_merge(parse_merge_config(card(CARDS[name], tmp_path, "float16"), where="t"), tmp_path / "m")
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.config.num_hidden_layers == (6 if name == "passthrough" else 4)


def test_dare_ties_with_a_union_of_tokens(
    family: dict[str, State], tmp_path: Path, make_model: Callable[..., Path]
):
    del family
    chat = make_model(tmp_path / "chat", seed=1, num_hidden_layers=4, vocab_size=322)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(chat)
    text = """
models:
  - model: BASE
  - model: A
    parameters: {density: 0.53, weight: 0.4}
  - model: CHAT
    parameters: {density: 0.53, weight: 0.3}
merge_method: dare_ties
base_model: BASE
parameters: {int8_mask: 1, normalize: true, rescale: true}
tokenizer_source: union
"""
    data = card(text.replace("CHAT", str(chat)), tmp_path, "bfloat16")
    run_merge(parse_merge_config(data, where="t"), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert model.get_input_embeddings().weight.shape[0] == len(merged) == 322
    words = "<|im_start|>the board reported debt<|im_end|>"
    ids = merged(words)["input_ids"]
    assert ids[0] == 320
    assert merged.decode(ids) == words
