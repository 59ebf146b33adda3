"""A whole run of a vision-language model: data, training, merge and choice, and it loads as what it
was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.helpers.tiny_runs import make_project, open_run
from tests.helpers.wrappers import small_wrapper
from toolkit.pipeline.models import ensure_cpt
from toolkit.pipeline.stages import ensure_merge

SEARCH = {"num_trials": 4, "sweep": [0.8, 0.4], "merges": ["linear"]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "llama4"])
def test_a_run_changes_the_text_side_alone(
    tmp_path: Path,
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
):
    monkeypatch.chdir(make_project(tmp_path, make_model))
    wrapper = small_wrapper(model_type, scale=1.0).bfloat16()  # as such models are released
    wrapper.save_pretrained("model")
    run = open_run(tmp_path, {"train": {"save_steps": 50}, "search": SEARCH})
    folders = {"specialist": ensure_cpt(run), "merge": ensure_merge(run)}
    before = load_file("model/model.safetensors")
    for name, folder in folders.items():
        after = load_file(folder / "model.safetensors")
        assert set(before) == set(after), name
        changed = {one for one in before if not torch.equal(before[one], after[one])}
        assert changed, name
        assert not any("vision" in one or "visual" in one for one in changed), name
        assert type(AutoModelForImageTextToText.from_pretrained(folder)) is type(wrapper)
