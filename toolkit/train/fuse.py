"""Which models train with fused parts, and how those are put in."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.train.config import TrainSection
from toolkit.train.fused import gated, project
from toolkit.train.fused_attention import attend
from toolkit.train.tied import share_gradient, unshare_gradient
from toolkit.train.workspace import WORKSPACE

KINDS = ("llama", "mistral", "qwen2")
"""Model types whose blocks are a norm, rotary grouped attention, a norm and a gated block, each
tested against the model's own arithmetic."""


def may_fuse(section: TrainSection, device: str, *, sharded: bool) -> bool:
    """Whether settings allow it: GPUs have kernels of their own, and FSDP has no float32
    parameters to hand in.

    Args:
        section: of the recipe.
        device: kind of device, as torch calls it.
        sharded: FSDP.
    """
    is_plain = section.attn_implementation == "auto" and not section.compile
    return is_plain and device == "cpu" and not sharded


def can_fuse(model: Any) -> bool:
    """Whether every block of a causal language model consists of parts that are there fused."""
    config = model.config
    if config.model_type not in KINDS or config.hidden_act not in ("silu", "swish"):
        return False
    # Fused attention drops nothing out, and has no windows.
    if getattr(config, "attention_dropout", 0.0) or _slides(config):
        return False
    layers = getattr(model.base_model, "layers", ())
    return len(layers) > 0 and all(_is_plain(layer) for layer in layers)


def fuse(model: Any, dtype: torch.dtype) -> bool:
    """Let a model's blocks train with fused parts; scoring stays as it is.

    What a block computes in training is then float32 between blocks and `dtype` in products, as
    under autocast; only some sums are rounded later.

    Args:
        model: a causal language model with float32 parameters.
        dtype: of the products, bfloat16 or float32.

    Returns:
        Whether it `can_fuse`; where not, nothing was changed.
    """
    if not can_fuse(model):
        return False
    # The norms' own forward does nothing from here on: it is part of the product that follows.
    for layer in model.base_model.layers:
        first_norm, second_norm = layer.input_layernorm, layer.post_attention_layernorm
        first_norm.forward = MethodType(_norm_forward, first_norm)
        second_norm.forward = MethodType(_norm_forward, second_norm)
        layer.self_attn.forward = MethodType(
            partial(_attention_forward, norm=first_norm, dtype=dtype), layer.self_attn
        )
        layer.mlp.forward = MethodType(
            partial(_mlp_forward, norm=second_norm, dtype=dtype), layer.mlp
        )
    share_gradient(model)
    return True


def unfuse(model: Any) -> None:
    """Undo `fuse`."""
    unshare_gradient(model)
    WORKSPACE.clear()
    for layer in getattr(model.base_model, "layers", ()):
        for part_name in ("input_layernorm", "post_attention_layernorm", "mlp", "self_attn"):
            vars(getattr(layer, part_name)).pop("forward", None)


def _slides(config: Any) -> bool:
    layer_kinds = getattr(config, "layer_types", None)
    if layer_kinds:
        return any(kind != "full_attention" for kind in layer_kinds)
    return getattr(config, "sliding_window", None) is not None


def _is_plain(layer: Any) -> bool:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    linear_modules: list[Any] = [
        getattr(attention, f"{name}_proj", None) for name in ("q", "k", "v", "o")
    ]
    linear_modules += [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    # By type: adapters and quantized products are of other classes, and do more.
    if any(type(module) is not nn.Linear for module in linear_modules):
        return False
    # Queries, keys and values may have biases, as Qwen 2's; what follows them may not.
    if any(module.bias is not None for module in linear_modules[3:]):
        return False
    block_norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return all(hasattr(part, "variance_epsilon") for part in block_norms)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Nothing, where what comes next does it."""
    if _learns(self):
        return hidden_states
    return type(self).forward(self, hidden_states)  # type: ignore[no-any-return]


def _mlp_forward(self: Any, x: Tensor, *, norm: Any, dtype: torch.dtype) -> Tensor:
    if not _learns(self):
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    mlp_weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
    flat_states = x.reshape(-1, x.shape[-1])
    flat_result = gated(
        flat_states, (norm.weight, norm.variance_epsilon), *mlp_weights, dtype=dtype
    )
    return flat_result.view(x.shape)


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    *,
    norm: Any,
    dtype: torch.dtype,
    **given: Any,
) -> tuple[Tensor, None]:
    if not _learns(self):
        return type(self).forward(  # type: ignore[no-any-return]
            self, hidden_states, position_embeddings, attention_mask, past_key_values, **given
        )
    flat_states = hidden_states.reshape(-1, hidden_states.shape[-1])
    input_modules = (self.q_proj, self.k_proj, self.v_proj)
    qkv = project(
        flat_states,
        [part.weight for part in input_modules],
        [part.bias for part in input_modules],
        (norm.weight, norm.variance_epsilon),
        dtype=dtype,
        place="heads",
    )
    head_counts = (self.k_proj.out_features // self.head_dim, self.num_key_value_groups)
    cos, sin = (part.reshape(-1, part.shape[-1]).float() for part in position_embeddings)
    # Edges of pieces come with the layout `lengths`, which fused training always has.
    mixed_heads = attend(qkv, cos, sin, given["cu_seq_lens_q"].tolist(), head_counts, self.scaling)
    flat_result = project(mixed_heads, [self.o_proj.weight], [None], dtype=dtype, place="result")
    return flat_result.view(hidden_states.shape), None


def _learns(module: nn.Module) -> bool:
    return module.training and torch.is_grad_enabled()
