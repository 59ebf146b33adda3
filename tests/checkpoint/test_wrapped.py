"""A language model inside a wrapper: its text side learns, the rest stays, the folder stays one."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText

from tests.helpers.architectures import packed_error, scored_error
from tests.helpers.wrappers import small_wrapper
from toolkit.checkpoint.folder import save_model
from toolkit.checkpoint.load import load_causal_model, merge_adapter
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.wrapped_adapter import place_in_wrapper
from toolkit.checkpoint.wrappers import wrapper_of
from toolkit.merge.config import parse_merge_config
from toolkit.merge.in_memory_proof import why_not_live
from toolkit.merge.to_disk import run_merge
from toolkit.train.config import LoraSection, TrainSection
from toolkit.train.trainable import prepare_model

WRAPPERS = (
    *("qwen3_5", "qwen3_5_moe", "gemma3", "gemma4", "mistral3", "llava"),
    *("llama4", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "aya_vision"),
)
"""Those whose text side transformers has as a class, and those where it has none, or another."""

TEXT = torch.tensor([[7, 5, 9, 200, 31, 8]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", WRAPPERS)
def test_the_text_side_is_changed_and_everything_else_is_written_back(
    tmp_path: Path, model_type: str
):
    wrapper = small_wrapper(model_type)
    wrapper.save_pretrained(tmp_path / "whole")
    model = load_causal_model(tmp_path / "whole", torch.float32)
    with torch.no_grad():
        assert_close(model(input_ids=TEXT).logits, wrapper(input_ids=TEXT).logits)
        for parameter in model.parameters():
            parameter.add_(0.01)
        expected = model(input_ids=TEXT).logits
    (tmp_path / "out").mkdir()
    save_model(model, tmp_path / "out", dtype=torch.float32, like=tmp_path / "whole")

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    towers = {name for name in before if "vision" in name or "visual" in name}
    assert changed
    assert towers or model_type == "gemma4"  # whose small configuration has none
    assert not towers & changed
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(wrapper)
    with torch.no_grad():
        assert_close(loaded(input_ids=TEXT).logits, expected)
    assert why_not_live(tmp_path / "out") == ""
    assert packed_error(model)[1] < 1e-5
    assert scored_error(model)[1] < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "modules"),
    [
        ("qwen2_5_vl", ("q_proj", "lm_head")),
        ("mistral3", ("q_proj", "down_proj")),  # its head is tied
        ("llama4", ("q_proj", "lm_head")),
    ],
)
def test_an_adapter_of_the_text_side_is_one_of_the_wrapper(
    tmp_path: Path, model_type: str, modules: tuple[str, ...]
):
    whole = tmp_path / "whole"
    small_wrapper(model_type).save_pretrained(whole)
    section = TrainSection(lora=LoraSection(rank=2, target_modules=modules))
    adapted = prepare_model(load_causal_model(whole, torch.float32), section)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
        expected = adapted.eval()(input_ids=TEXT).logits
    adapted.save_pretrained(tmp_path / "adapter")
    place_in_wrapper(adapted, tmp_path / "adapter")

    config = {
        "merge_method": "passthrough",
        "models": [{"model": f"{whole}+{tmp_path / 'adapter'}"}],
    }
    run_merge(parse_merge_config(config, where="test"), tmp_path / "merged")
    base = AutoModelForImageTextToText.from_pretrained(whole)
    by_peft = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert not any(
        "vision" in n or "visual" in n for n, _ in by_peft.named_parameters() if "lora" in n
    )
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        by_us = merge_adapter(load_causal_model(whole, torch.float32), tmp_path / "adapter")
        for model in (by_peft, merged, by_us):
            found = model.float().eval()(input_ids=TEXT).logits
            assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore")
def test_weights_in_another_form_do_not_reach_the_trained_folder(tmp_path: Path):
    whole = tmp_path / "whole"
    small_wrapper("mistral3").save_pretrained(whole, max_shard_size="200KB")
    assert (whole / "model.safetensors.index.json").is_file()
    save_file(
        {"layers.0.attention.wq.weight": torch.ones(2, 2)}, whole / "consolidated.safetensors"
    )
    model = load_causal_model(whole, torch.float32)
    (tmp_path / "out").mkdir()
    save_model(model, tmp_path / "out", dtype=torch.float32, like=whole)
    written = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert written == {path.name for path in whole.glob("model-*.safetensors")}
    assert open_checkpoint(tmp_path / "out").names == open_checkpoint(whole).names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["llama4", "gemma3", "qwen2_5_vl"])
def test_a_wrapper_leaves_memory_with_its_text_side(tmp_path: Path, model_type: str):
    small_wrapper(model_type).save_pretrained(tmp_path)
    model = load_causal_model(tmp_path, torch.float32)
    copied = copy.deepcopy(model)
    assert wrapper_of(copied).get_decoder() is not wrapper_of(model).get_decoder()
    parts = [weakref.ref(model), weakref.ref(wrapper_of(model))]
    del model, copied
    gc.collect()
    assert [part() for part in parts] == [None, None]
