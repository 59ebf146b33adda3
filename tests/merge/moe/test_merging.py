"""Two mixtures of experts merged: on disk and live alike, through what training stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.conftest import tiny_config
from tests.helpers.merge_candidates import assert_same_bytes, candidate
from toolkit.checkpoint.folder import save_model
from toolkit.merge.config import parse_merge_config
from toolkit.merge.in_memory import LiveMerge
from toolkit.merge.moe.config import MoeConfig
from toolkit.merge.moe.run import run_moe
from toolkit.merge.to_disk import run_merge
from toolkit.section import parse_section


@pytest.fixture(params=["mixtral", "qwen", "qwen3"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, make_model: Callable[..., Path]
) -> dict[str, Path]:
    """A mixture and what training made of it, as the trainer stores it."""
    base = tmp_path / "base"
    if request.param == "qwen3":
        values = tiny_config().to_dict()
        unknown = {"model_type", "architectures", "mlp_bias", "head_dim"}
        plain = {key: value for key, value in values.items() if key not in unknown}
        Qwen3ForCausalLM(Qwen3Config(**plain, head_dim=8)).save_pretrained(base)
    else:
        make_model(base, seed=1)
    expert = {"source_model": str(base), "noise_scale": 0.01}
    data = {"base_model": str(base), "experts": [expert] * 3, "gate_mode": "random"}
    config = parse_section(
        MoeConfig, {**data, "architecture": request.param}, where="test", what="test"
    )
    general = tmp_path / "general"
    run_moe(config, general)
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(general)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    specialist = tmp_path / "specialist"
    save_model(model, specialist, dtype=torch.float32, like=general)
    return {"general": general, "specialist": specialist}


def test_training_stores_the_names_that_the_mixture_was_made_with(pair: dict[str, Path]):
    first, second = (load_file(folder / "model.safetensors") for folder in pair.values())
    assert {name: t.shape for name, t in first.items()} == {n: t.shape for n, t in second.items()}


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties"])
def test_live_and_disk_agree(pair: dict[str, Path], tmp_path: Path, method: str):
    more: dict[str, Any] = {"density": 0.5} if "ties" in method else {}
    data = candidate(method, 0.4, **more)
    config = parse_merge_config({**data, "out_dtype": "float32"}, where="test")
    run_merge(config, tmp_path / "out", folders=pair, seed=5)
    merged = load_file(tmp_path / "out" / "model.safetensors")

    model = AutoModelForCausalLM.from_pretrained(pair["general"], dtype=torch.float32)
    live = LiveMerge(pair, seed=5)
    live.apply(config, model)
    assert_same_bytes(model, merged)
    assert live.distance(model, "general") > 0

    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    if method == "linear":
        first, second = (load_file(folder / "model.safetensors") for folder in pair.values())
        name = next(n for n in merged if "experts.2." in n)
        torch.testing.assert_close(merged[name], 0.6 * first[name] + 0.4 * second[name])
