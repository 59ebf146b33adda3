"""A family of tiny models: a base, and two tuned from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.families import State


@pytest.fixture
def write(tmp_path: Path, make_model: Callable[..., Path]) -> Callable[..., Path]:
    """`write(name, state)`: a model folder with these tensors; without them, a random model's."""

    def make(name: str, state: State | None = None, **config: Any) -> Path:
        folder = make_model(tmp_path / name, seed=1, num_hidden_layers=4, **config)
        if state is not None:
            save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def family(write: Callable[..., Path]) -> dict[str, State]:
    """Tensors of a base and two models tuned from it, already in their folders."""
    base = load_file(write("base") / "model.safetensors")
    states = {"base": base}
    for seed, name in enumerate(("a", "b")):
        random = torch.Generator().manual_seed(seed)
        states[name] = {
            k: v + 0.002 * torch.randn(v.shape, generator=random) for k, v in base.items()
        }
        write(name, states[name])
    return states
