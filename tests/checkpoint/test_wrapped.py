"""A language model inside a wrapper: its text side learns, the rest stays, the folder stays one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText

from tests.helpers.architectures import small_wrapper
from toolkit.checkpoint.folder import save_model
from toolkit.checkpoint.load import load_causal_model
from toolkit.merge.live_proof import why_not_live

WRAPPERS = ("qwen3_5", "qwen3_5_moe", "gemma3", "gemma4", "mistral3", "llava")
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
