"""Activations that are computed again rather than kept: memory for (a little) time."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

_ATEN = torch.ops.aten
_KEPT_OPERATIONS = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN._grouped_mm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
}
"""What takes the time of a block; the rest (norms, casts, rotations, gates) is cheap to repeat, and
most of what a block keeps."""


def checkpoint_activations(model: Any, kind: str) -> None:
    """Set up a transformers model to compute activations again in its backward pass.

    Args:
        model: a causal language model.
        kind: `none`, `selective` (all but matrix products and attention) or `full` (whole blocks).

    Reference:
        Chen et al. 2016, Training deep nets with sublinear memory cost; Korthikanti et al. 2022,
        Reducing activation recomputation in large transformer models (selective).
    """
    if kind == "none" or not getattr(model, "supports_gradient_checkpointing", False):
        return
    # The reentrant kind takes no policy, and gives no gradient where a block's input needs none, as
    # behind frozen embeddings.
    checkpoint_settings: dict[str, object] = {"use_reentrant": False}
    if kind == "selective":
        checkpoint_settings["context_fn"] = _contexts
    # Named anew in transformers 5; the old name warns.
    enable_checkpointing = getattr(model, "activation_checkpointing_enable", None)
    (enable_checkpointing or model.gradient_checkpointing_enable)(checkpoint_settings)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]


def _policy(_context: Any, operation: Any, *arguments: Any, **_: Any) -> CheckpointPolicy:
    if operation not in _KEPT_OPERATIONS:
        return CheckpointPolicy.PREFER_RECOMPUTE
    if operation is _ATEN.mm.default and arguments[0].shape[1] > arguments[1].shape[1]:
        # A product that makes vectors shorter ends a block, and nothing after it needs its result.
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE
