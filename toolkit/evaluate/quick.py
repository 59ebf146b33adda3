"""Models scored with fewer passes over memory: the same operations, rounded in the same places but
for the order of sums in attention.

A CPU waits for memory in what stands between the products. Here each of these small steps goes
through the cache in pieces, results are written where the last batch's stood, and matrices that
take the same input stand side by side as one. Training has blocks of its own, with gradients.

Legend: B rows, T tokens, N = B T positions, D hidden size, I inner size, K key/value heads, G query
heads to each of them, H entries of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.evaluate.quick_attention import attend, can_attend

KINDS = ("llama", "mistral", "qwen2")
"""Model types whose blocks are a root-mean-square norm, rotary grouped attention, another norm and
a gated block, each tested against the model's own arithmetic."""

_CACHE_ENTRIES = 128 * 1024
"""Entries that a small step goes through at one time."""


def quicken(model: Any) -> bool:
    """Let a model be scored faster; what it computes stays the same, and training is untouched.

    Its matrices are moved into shared memory, as views: what is written into them afterwards, such
    as a merge, is seen.

    Returns:
        Whether its blocks are known; where not, nothing was changed.
    """
    if not can_quicken(model):
        return False
    places = _Places()
    norm = type(model.base_model.norm)
    for module in model.base_model.modules():
        if type(module) is norm:
            module.forward = MethodType(_norm_forward, module)
    for layer in model.base_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        attention.forward = MethodType(
            partial(_attention_forward, beside=_side_by_side(qkv), places=places), attention
        )
        both = _side_by_side([mlp.gate_proj, mlp.up_proj])
        mlp.forward = MethodType(partial(_mlp_forward, beside=both, places=places), mlp)
    return True


def can_quicken(model: Any) -> bool:
    """Whether a model stands on the CPU and every block consists of parts that are known."""
    config = model.config
    if next(model.parameters()).device.type != "cpu" or config.model_type not in KINDS:
        return False
    if config.hidden_act not in ("silu", "swish") or config._attn_implementation != "sdpa":
        return False
    layers = getattr(model.base_model, "layers", ())
    return len(layers) > 0 and not _slides(config) and all(_is_plain(layer) for layer in layers)


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None


def _is_plain(layer: Any) -> bool:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    linear: list[Any] = [getattr(attention, f"{name}_proj", None) for name in ("q", "k", "v", "o")]
    linear += [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if any(type(module) is not nn.Linear for module in linear):
        return False
    beside = {tuple(module.bias is None for module in part) for part in (linear[:3], linear[4:6])}
    return all(len(set(bare)) == 1 for bare in beside) and hasattr(
        layer.input_layernorm, "variance_epsilon"
    )


class _Places:
    """Memory that is written anew by every block: fresh memory the system would clear first."""

    def __init__(self) -> None:
        self._known: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """`[rows, width]`, of whatever content."""
        place = self._known.get(name)
        if place is None or place.numel() < rows * width or place.dtype != dtype:
            place = self._known[name] = torch.empty(rows * width, dtype=dtype)
        return place[: rows * width].view(rows, width)


class _Beside:
    """Linear parts of one input as one; their parameters are views of `weight` and `bias`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        if self.bias is None:
            return torch.mm(x, self.weight.T, out=out)
        return torch.addmm(self.bias, x, self.weight.T, out=out)


def _side_by_side(modules: Sequence[nn.Linear]) -> _Beside:
    found: list[Tensor | None] = []
    for name in ("weight", "bias"):
        parts = [getattr(module, name) for module in modules]
        if parts[0] is None:
            found.append(None)
            continue
        whole = torch.cat([part.detach() for part in parts])
        views = torch.split(whole, [len(part) for part in parts])
        for part, view in zip(parts, views, strict=True):
            part.data = view
        found.append(whole)
    assert found[0] is not None  # noqa: S101  (every linear part has a weight)
    return _Beside(found[0], found[1])


def _is_scored(module: nn.Module) -> bool:
    return not module.training and not torch.is_grad_enabled()


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """As the models have it: normed in float32, cast, and then scaled."""
    if not _is_scored(self):
        return type(self).forward(self, hidden_states)  # type: ignore[no-any-return]
    x = hidden_states.reshape(-1, hidden_states.shape[-1])
    out = torch.empty_like(x)
    for rows in _pieces(x):
        part = x[rows].float()
        inverse = torch.rsqrt(part.square().mean(-1, keepdim=True) + self.variance_epsilon)
        out[rows] = part * inverse
        out[rows].mul_(self.weight)
    return out.view(hidden_states.shape)


def _mlp_forward(self: Any, x: Tensor, *, beside: _Beside, places: _Places) -> Tensor:
    if not _is_scored(self):
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    flat, width = x.reshape(-1, x.shape[-1]), self.gate_proj.out_features
    both = beside(flat, places.take("gated", len(flat), 2 * width, x.dtype))
    product = places.take("product", len(flat), width, x.dtype)
    opened, raised = both.chunk(2, dim=1)
    for rows in _pieces(product):
        torch.mul(functional.silu(opened[rows]), raised[rows], out=product[rows])
    out: Tensor = self.down_proj(product)
    return out.view(x.shape)


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    *,
    beside: _Beside,
    places: _Places,
    **given: Any,
) -> tuple[Tensor, Any]:
    if not _is_scored(self):
        return type(self).forward(  # type: ignore[no-any-return]
            self, hidden_states, position_embeddings, attention_mask, past_key_values, **given
        )
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    shape = hidden_states.shape[:-1]
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    width = len(beside.weight)
    if past_key_values is None:
        qkv = places.take("qkv", len(flat), width, flat.dtype)
    else:  # a cache keeps the values
        qkv = torch.empty(len(flat), width, dtype=flat.dtype)
    heads = beside(flat, qkv).view(*shape, -1, self.head_dim)
    kinds = self.k_proj.out_features // self.head_dim
    turned = rotated(heads[:, :, :-kinds], *position_embeddings)
    queries, keys = turned[:, :, :-kinds].transpose(1, 2), turned[:, :, -kinds:].transpose(1, 2)
    values = heads[:, :, -kinds:].transpose(1, 2)
    if past_key_values is not None:
        keys, values = past_key_values.update(keys, values, self.layer_idx)
    if can_attend(queries, keys, attention_mask):
        mixed = attend(queries, keys, values, attention_mask, self.scaling)
    else:
        mixed, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
            self, queries, keys, values, attention_mask, dropout=0.0, scaling=self.scaling, **given
        )
    return self.o_proj(mixed.reshape(*shape, -1)), None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, row by row of the batch.

    Args:
        x: queries and keys, `[B, T, heads, H]`.
        cos, sin: `[B or 1, T, H]`, in the type of `x`.

    Returns:
        `[B, T, heads, H]`, one behind the other in memory.

    Reference:
        Su et al. 2021, RoFormer.
    """
    half, step = x.shape[-1] // 2, max(1, _CACHE_ENTRIES // x[0].numel())
    out = torch.empty(x.shape, dtype=x.dtype)
    cross = torch.empty(min(step, len(x)), *x.shape[1:], dtype=x.dtype)
    cos, sin = (part.unsqueeze(2).expand(len(x), -1, -1, -1) for part in (cos, sin))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        own, c, s = x[rows], cos[rows], sin[rows]
        other = cross[: len(own)]
        torch.mul(own, c, out=out[rows])
        torch.mul(own[..., half:], -s[..., :half], out=other[..., :half])
        torch.mul(own[..., :half], s[..., half:], out=other[..., half:])
        out[rows].add_(other)
    return out


def _pieces(x: Tensor) -> Iterator[slice]:
    size = max(1, _CACHE_ENTRIES // x.shape[-1])
    for start in range(0, len(x), size):
        yield slice(start, start + size)
