"""The probe of packing looks for leaks between documents, not for rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from toolkit.checkpoint.load import load_causal_model
from toolkit.train.fuse import fuse
from toolkit.train.model import NextTokenLoss
from toolkit.train.packing_probe import settle_packing


def test_rounding_in_training_is_not_taken_for_a_leak(
    tmp_path: Path, make_model: Callable[..., Path]
):
    # In bfloat16, under which accelerate puts every forward pass of a module that it prepared,
    # losses this large differ by more from one shape to another than a leak does in float32;
    # SmolLM2's do, and it was then trained document by document.
    folder = make_model(
        tmp_path / "model", hidden_size=192, intermediate_size=384, tie_word_embeddings=False
    )
    model = load_causal_model(folder, torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(150.0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    fused = fuse(model, torch.bfloat16)
    module = accelerator.prepare(NextTokenLoss(model.train(), torch.bfloat16, fused=fused))
    plain = accelerator.unwrap_model(module)
    settle_packing(module, plain, 240, accelerator)
    assert plain.fused
    assert (plain.layout, plain.fused, plain.dtype) == ("positions", True, torch.bfloat16)
    assert plain.model.training
