"""Kinds of configurations that people publish, each in words of our own, against mergekit's result.

`test_model_cards.py` has whole cards; here each kind of wording stands alone, so that what differs
is named by its kind. Random methods are left to the tests of methods.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.families import State
from tests.helpers.mergekit_oracle import both
from tests.helpers.model_cards import card
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import load_merge_config, parse_merge_config
from toolkit.merge.to_disk import run_merge

TWO = "models: [{model: A, parameters: {weight: 0.6}}, {model: B, parameters: {weight: 0.3}}]\n"
TASK = TWO + "base_model: BASE\n"
PLAIN = "models: [{model: A}, {model: B}]\n"
PIECES = "{model: A, layer_range: [0, 4]}, {model: B, layer_range: [0, 4]}"

KINDS = {
    # -- how a model is written
    "long references": """
merge_method: linear
models:
  - model: {model: {path: A}}
    parameters: {weight: 1}
  - model: {model: {path: B}, lora: null}
    parameters: {weight: 2}
""",
    "an anchor for what two models share": """
merge_method: linear
models:
  - {model: A, parameters: &same {weight: [0.1, 0.9]}}
  - {model: B, parameters: *same}
""",
    "a base that is merged too": """
merge_method: linear
base_model: BASE
models: [{model: BASE, parameters: {weight: 0.2}}, {model: A, parameters: {weight: 0.8}}]
""",
    "a base with parameters among the models": """
merge_method: task_arithmetic
base_model: BASE
models:
  - {model: BASE, parameters: {weight: 0.9}}
  - {model: A, parameters: {weight: 0.5}}
""",
    # -- how numbers are written
    "quoted numbers": TASK.replace("0.6", '"0.6"') + "merge_method: task_arithmetic\n",
    "quoted switch that is off": "merge_method: linear\nparameters: {normalize: 'false'}\n" + TWO,
    "quoted switch that is on": "merge_method: linear\nparameters: {normalize: 'True'}\n" + TWO,
    "a switch as a number": "merge_method: linear\nparameters: {normalize: 0.0}\n" + TWO,
    "weights above one, and below zero": TASK.replace("0.6", "1.7").replace("0.3", "-0.2")
    + "merge_method: task_arithmetic\n",
    "a gradient longer than the layers": """
merge_method: linear
models:
  - {model: A, parameters: {weight: [0, 0.1, 0.9, 0.2, 0.8, 0.3, 1]}}
  - {model: B, parameters: {weight: 0.5}}
""",
    "a gradient of one number": """
merge_method: linear
models:
  - {model: A, parameters: {weight: [0.4]}}
  - {model: B, parameters: {weight: 0.6}}
""",
    "one weight for all of them": """
merge_method: linear
models: [{model: A}, {model: B}]
parameters: {weight: 0.5}
""",
    "lambda over all": TASK + "merge_method: task_arithmetic\nparameters: {lambda: 0.5}\n",
    # -- filters
    "filters of one block, of a norm and of the head": """
merge_method: linear
models:
  - model: A
    parameters:
      weight:
        - {filter: o_proj, value: 0.9}
        - {filter: input_layernorm, value: 0.1}
        - {filter: post_attention_layernorm, value: [0.2, 0.3]}
        - {filter: embed_tokens, value: 1.0}
        - {filter: lm_head, value: 0.0}
        - {filter: model.norm, value: 0.7}
        - value: 0.5
  - {model: B, parameters: {weight: 0.5}}
""",
    "a filter that matches nothing": """
merge_method: linear
models:
  - {model: A, parameters: {weight: [{filter: conv1d, value: 3}, {value: 0.4}]}}
  - {model: B, parameters: {weight: 0.6}}
""",
    "the general value first": """
merge_method: linear
models:
  - {model: A, parameters: {weight: [{value: 0.4}, {filter: mlp, value: 1.0}]}}
  - {model: B, parameters: {weight: 0.6}}
""",
    "filters of a whole merge": """
merge_method: task_arithmetic
base_model: BASE
models: [{model: A}, {model: B}]
parameters:
  weight: [{filter: self_attn, value: [0.2, 0.8]}, {filter: mlp, value: 0.3}, {value: 0.5}]
""",
    # -- slices
    "slices beside a base": """
merge_method: task_arithmetic
base_model: BASE
slices:
- sources:
  - {model: BASE, layer_range: [0, 4]}
  - {model: A, layer_range: [0, 4], parameters: {weight: 0.4}}
  - {model: B, layer_range: [0, 4], parameters: {weight: [0, 1]}}
""",
    "slerp of slices, t by depth": f"""
merge_method: slerp
base_model: A
slices: [{{sources: [{PIECES}]}}]
parameters: {{t: [0, 0.25, 0.5, 0.75, 1]}}
""",
    "slerp of models": """
merge_method: slerp
base_model: B
models: [{model: A}, {model: B}]
parameters: {t: [{filter: mlp, value: 0.2}, {value: 0.6}]}
""",
    "two slices, two settings": """
merge_method: linear
slices:
- sources:
  - {model: A, layer_range: [0, 2], parameters: {weight: 1}}
  - {model: B, layer_range: [1, 3], parameters: {weight: 0}}
- sources:
  - {model: A, layer_range: [2, 4], parameters: {weight: 0.5}}
  - {model: B, layer_range: [2, 4], parameters: {weight: 0.5}}
""",
    "layers repeated": """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 3]}]
- sources: [{model: A, layer_range: [1, 4]}]
""",
    "layers left out": """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 1]}]
- sources: [{model: A, layer_range: [3, 4]}]
""",
    "a slice with a base of its own": """
merge_method: slerp
base_model: A
slices:
- sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}]
  base_model: B
- sources: [{model: A, layer_range: [2, 4]}, {model: B, layer_range: [2, 4]}]
parameters: {t: 0.3}
""",
    # -- methods as they are published
    "model stock": "merge_method: model_stock\nbase_model: BASE\n" + PLAIN,
    "nuslerp with a base": "merge_method: nuslerp\n" + TASK,
    "nuslerp without a base": "merge_method: nuslerp\nparameters: {nuslerp_row_wise: true}\n" + TWO,
    "arcee fusion": "merge_method: arcee_fusion\nbase_model: A\n" + PLAIN,
    "nearswap": """
merge_method: nearswap
base_model: A
models: [{model: A}, {model: B}]
parameters: {t: 0.0001}
""",
    "karcher": "merge_method: karcher\nparameters: {max_iter: 10}\n" + PLAIN,
    "multislerp": "merge_method: multislerp\n" + TWO,
    "passthrough of one model": "merge_method: passthrough\nmodels: [{model: A}]\n",
    # -- words around it
    "words of other methods": TASK
    + "merge_method: task_arithmetic\n"
    + "parameters: {rescale: true, t: 0.5, epsilon: 0.1, select_topk: 0.2, embed_slerp: true}\n",
    "a name, and the union of equal tokenizers": "name: x\nmerge_method: linear\n"
    + "tokenizer_source: union\n"
    + TWO,
    "a section of one tokenizer": "merge_method: linear\ntokenizer: {source: A}\n" + TWO,
    "a residual weight of nothing": f"""
merge_method: slerp
base_model: A
slices: [{{sources: [{PIECES}], residual_weight: null}}]
parameters: {{t: 0.5}}
""",
}

SOME_DIFFER = {"nearswap": 0.02, "arcee fusion": 0.02}
"""Share of entries that may differ: thresholds on float32 differences."""


@pytest.mark.parametrize("name", KINDS)
def test_as_mergekit(name: str, family: dict[str, State], tmp_path: Path):
    del family  # in its folders
    ours, theirs = both(card(KINDS[name], tmp_path, "float32"), tmp_path)
    assert set(ours) == set(theirs)
    for tensor, expected in theirs.items():
        close = torch.isclose(ours[tensor], expected, rtol=1e-5, atol=1e-6)
        assert float(close.float().mean()) >= 1.0 - SOME_DIFFER.get(name, 0.0), tensor


@pytest.mark.parametrize("dtypes", [("bfloat16", None), ("float16", None), ("float32", "bfloat16")])
def test_types_that_are_written(
    dtypes: tuple[str, str | None], family: dict[str, State], tmp_path: Path
):
    del family
    data = card("merge_method: task_arithmetic\n" + TASK, tmp_path, dtypes[0])
    if dtypes[1]:
        data["out_dtype"] = dtypes[1]
    ours, theirs = both(data, tmp_path)
    for tensor, expected in theirs.items():
        assert ours[tensor].dtype == expected.dtype == getattr(torch, dtypes[1] or dtypes[0])
        # mergekit computes in the narrow type, where each of a few steps rounds
        torch.testing.assert_close(ours[tensor], expected, rtol=0.02, atol=2e-3)


def add_lora(folder: Path, out: Path, seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
        adapted = get_peft_model(model, settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(out)
    return out


LORAS = {
    "the base with its adapter alone": """
merge_method: task_arithmetic
base_model: A+LORA
parameters: {normalize: false}
slices:
- sources: [{model: A+LORA, layer_range: [0, 4], parameters: {weight: 1.0}}]
""",
    "an adapter baked in": "merge_method: passthrough\nmodels: [{model: A+LORA}]\n",
    "two adapters on one base": """
merge_method: task_arithmetic
base_model: A
models:
  - {model: A+LORA, parameters: {weight: 0.7}}
  - {model: A+OTHER, parameters: {weight: 0.4}}
""",
    "an adapter in the long form": """
merge_method: linear
models:
  - {model: {model: {path: A}, lora: {path: LORA}}, parameters: {weight: 1}}
  - {model: B, parameters: {weight: 1}}
""",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LORAS)
def test_adapters_as_mergekit(name: str, family: dict[str, State], tmp_path: Path):
    del family
    for number, lora in enumerate(("LORA", "OTHER")):
        add_lora(tmp_path / "a", tmp_path / lora.lower(), number)
    text = LORAS[name]
    for lora in ("LORA", "OTHER"):
        text = text.replace(f"A+{lora}", f"{tmp_path / 'a'}+{tmp_path / lora.lower()}")
        text = text.replace(lora, str(tmp_path / lora.lower()))
    ours, theirs = both(card(text, tmp_path, "float32"), tmp_path, lora_merge_cache=str(tmp_path))
    assert set(ours) == set(theirs)
    for tensor, expected in theirs.items():
        torch.testing.assert_close(ours[tensor], expected, rtol=1e-4, atol=1e-6)


VOCABULARIES = {
    "union": "tokenizer_source: union\n",
    "of the second": "tokenizer_source: CHAT\n",
    "base": "tokenizer_source: base\n",
    "a section with tokens": """
tokenizer:
  source: union
  tokens:
    <|im_start|>: {source: CHAT}
    <|im_end|>: {source: {kind: model_token, model: CHAT, token: <|im_start|>}, force: true}
""",
    "padded": "tokenizer: {source: union, pad_to_multiple_of: 64}\n",
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabularies_as_mergekit(
    name: str, family: dict[str, State], tmp_path: Path, make_model: Callable[..., Path]
):
    del family
    chat = make_model(tmp_path / "chat", seed=7, num_hidden_layers=4, vocab_size=322)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(chat)
    text = "merge_method: linear\nbase_model: BASE\nmodels: [{model: A}, {model: CHAT}]\n"
    text += "parameters: {weight: 0.5}\n" + VOCABULARIES[name]
    ours, theirs = both(card(text.replace("CHAT", str(chat)), tmp_path, "float32"), tmp_path)
    assert set(ours) == set(theirs)
    for tensor, expected in theirs.items():
        torch.testing.assert_close(ours[tensor], expected, rtol=1e-5, atol=1e-6)
    found, wanted = (
        AutoTokenizer.from_pretrained(tmp_path / folder).get_vocab()
        for folder in ("ours", "theirs")
    )
    assert found == wanted


@pytest.mark.parametrize("template", ["chatml", "auto", "{{ messages[0].content }}"])
def test_chat_templates_as_mergekit(template: str, family: dict[str, State], tmp_path: Path):
    del family
    data = card("merge_method: linear\n" + TWO, tmp_path, "float32") | {"chat_template": template}
    both(data, tmp_path)
    ours, theirs = (
        AutoTokenizer.from_pretrained(tmp_path / folder).chat_template
        for folder in ("ours", "theirs")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: linear\nmodels: [{model: A, weight: 1}]\n", "unknown key"),
        ("merge_method: linaer\n" + TWO, "did you mean linear"),
        ("merge_method: slerp\nbase_model: A\n" + TWO + "dtype: bf16\n", "must be one of"),
        ("merge_method: ties\n" + PLAIN, "base_model"),
        (TWO + "merge_method: linear\n---\n" + TWO, "several documents"),
        ("merge_method: linear\nexperts: []\n" + TWO, "toolkit merge moe"),
    ],
)
def test_what_nobody_could_run_is_refused_at_its_key(
    text: str, words: str, family: dict[str, State], tmp_path: Path
):
    del family
    path = tmp_path / "m.yml"
    if "---" in text:
        path.write_text(text)
    else:
        data = card(text, tmp_path, "float32")
        path.write_text(yaml.safe_dump(data | ({"dtype": "bf16"} if "bf16" in text else {})))
    with pytest.raises(ConfigError, match=words):
        run_merge(load_merge_config(path), tmp_path / "out")


def test_layers_that_are_not_there_are_refused(family: dict[str, State], tmp_path: Path):
    del family
    text = "merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [0, 9]}]}]\n"
    data: dict[str, Any] = card(text, tmp_path, "float32")
    with pytest.raises(MergeError, match="which has 4 layers"):
        run_merge(parse_merge_config(data, where="t"), tmp_path / "out")
