"""Merges in memory: the bytes of merges on disk, whatever was merged before."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.merge_candidates import assert_same_bytes, candidate
from toolkit.errors import MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.in_memory import LiveMerge
from toolkit.merge.to_disk import run_merge


def on_disk(data: dict[str, Any], folders: dict[str, Path], out: Path, dtype: str) -> Any:
    config = parse_merge_config({**data, "out_dtype": dtype}, where="test")
    run_merge(config, out, folders=folders, seed=5)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_search_s_worth_of_candidates(two_models: tuple[Path, Path], tmp_path: Path, dtype: str):
    # One after another into one model: nothing of a candidate may be left in the next, and what is
    # remembered (histograms, tables, angles) must answer for numbers not met before.
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    model = AutoModelForCausalLM.from_pretrained(two_models[0], dtype=getattr(torch, dtype))
    live = LiveMerge(folders, seed=5)
    candidates = [
        candidate("ties", 0.8, density=0.3),
        candidate("slerp", 0.4),
        candidate("ties", 0.7, density=0.5),
        candidate("ties", 0.9, density=0.05),
        candidate("breadcrumbs", 0.9, density=0.5, gamma=0.02),
        candidate("slerp", 0.7),
        candidate("linear", 0.3),
        candidate("nuslerp", 0.6),
        candidate("task_arithmetic", 1.2),
        candidate("dare_ties", 0.5, density=0.6),
        candidate("della", 0.5, density=0.6, epsilon=0.1),
        candidate("nearswap", 0.001),
    ]
    for number, data in enumerate(candidates):
        live.apply(parse_merge_config(data, where="test"), model)
        assert_same_bytes(model, on_disk(data, folders, tmp_path / str(number), dtype))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(two_models: tuple[Path, Path], tmp_path: Path, threads: int):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    data = candidate("dare_ties", 0.5, density=0.6)
    model = AutoModelForCausalLM.from_pretrained(two_models[0])
    live = LiveMerge(folders, seed=5, num_threads=threads)
    live.apply(parse_merge_config(data, where="test"), model)
    assert_same_bytes(model, on_disk(data, folders, tmp_path / "disk", "float32"))


def test_tied_embeddings_stay_tied(two_models: tuple[Path, Path]):
    model = AutoModelForCausalLM.from_pretrained(two_models[0])
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    LiveMerge(folders).apply(parse_merge_config(candidate("linear", 1.0), where="t"), model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_that_lacks_a_tensor(two_models: tuple[Path, Path]):
    model = AutoModelForCausalLM.from_pretrained(two_models[0])
    del model.model.norm.weight
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    with pytest.raises(MergeError, match=r"model\.norm\.weight: the loaded model has no such"):
        LiveMerge(folders).apply(parse_merge_config(candidate("slerp", 0.5), where="t"), model)


def test_a_damaged_model_is_named(two_models: tuple[Path, Path], tmp_path: Path):
    name = "model.layers.1.mlp.up_proj.weight"
    file = two_models[1] / "model.safetensors"
    state = load_file(file)
    state[name][0, 0] = float("nan")
    save_file(state, file, {"format": "pt"})
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    model = AutoModelForCausalLM.from_pretrained(two_models[0])
    for method in ("linear", "ties", "karcher"):
        data = candidate(method, 0.5)
        if method == "karcher":
            data = {"merge_method": method, "models": [{"model": name} for name in folders]}
        with pytest.raises(MergeError, match=rf"{name}: holds NaN or infinity in {file}"):
            LiveMerge(folders).apply(parse_merge_config(data, where="t"), model)


def test_models_that_were_merged_into_are_not_held(two_models: tuple[Path, Path]):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    live = LiveMerge(folders)
    models = [AutoModelForCausalLM.from_pretrained(two_models[0]) for _ in range(2)]
    for model in models:
        live.apply(parse_merge_config(candidate("linear", 0.5), where="t"), model)
        assert live.distance(model, "general") > 0.0
    first = weakref.ref(models[0])
    del models, model
    gc.collect()
    assert first() is None
