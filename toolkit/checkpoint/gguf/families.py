"""Families of models as llama.cpp computes them: its name for each, what it expects of the rows,
and what it cannot be told.

llama.cpp takes some of a family for granted (where windows lie, how queries are scaled). A model
that differs there would be computed otherwise without a word, so it is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.errors import CheckpointError

Difference = tuple[str, Any, Any]
"""A setting of config.json, its value, and the only one that llama.cpp knows."""

_SILU, _GELU = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new")
_ROPE = ("default", "linear", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class GgufFamily:
    """What llama.cpp knows of a family.

    Attributes:
        architecture: its name there.
        interleaved: whether its rotary embedding turns neighboring entries of a head, so that rows
            of queries and keys are permuted from halves to pairs.
        norm_shift: what is added to the weights of its norms.
        has_window: whether attention in a window can be said.
        needs_head: whether the output matrix may not be the embedding.
        is_as_wide: whether the heads of a layer must be as wide as the model.
        activations: of its feed-forward layers.
        differences: settings that llama.cpp takes for granted and that are otherwise in a config.
        is_known: False for a family that is only found by name; what is written is then believed
            only where another reader computes the same from it.
    """

    architecture: str
    interleaved: bool = False
    norm_shift: float = 0.0
    has_window: bool = False
    needs_head: bool = False
    is_as_wide: bool = False
    activations: tuple[str, ...] = _SILU
    differences: Callable[[Any], Iterator[Difference]] = lambda _: iter(())
    is_known: bool = True


def _gemma_differences(config: Any) -> Iterator[Difference]:
    # The largest of each generation scales queries by the width of the model over its heads.
    is_largest = config.num_hidden_layers == {"gemma2": 46}.get(config.model_type, 62)
    scalar = config.hidden_size // config.num_attention_heads if is_largest else config.head_dim
    yield "query_pre_attn_scalar", config.query_pre_attn_scalar, scalar
    period = 2 if config.model_type == "gemma2" else 6
    yield "layer_types", list(config.layer_types), _window_layers(config.num_hidden_layers, period)
    yield "use_bidirectional_attention", bool(config.use_bidirectional_attention), False
    if config.model_type == "gemma2":
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(config, key) is None:
                yield key, None, "a number"
    else:
        yield "attn_logit_softcapping", config.attn_logit_softcapping, None


def _window_layers(num_layers: int, period: int) -> list[str]:
    """Every so many layers one looks at all positions.

    >>> _window_layers(3, 2)
    ['sliding_attention', 'full_attention', 'sliding_attention']
    """
    return [
        "sliding_attention" if (number + 1) % period else "full_attention"
        for number in range(num_layers)
    ]


def _smollm3_differences(config: Any) -> Iterator[Difference]:
    # Every fourth layer turns nothing (NoPE): in this list 1 stands for a layer that does turn.
    expected = [int((number + 1) % 4 != 0) for number in range(config.num_hidden_layers)]
    yield "no_rope_layers", list(config.no_rope_layers), expected


def _qwen3_moe_differences(config: Any) -> Iterator[Difference]:
    yield "norm_topk_prob", config.norm_topk_prob, True
    yield "mlp_only_layers", list(config.mlp_only_layers or ()), []
    yield "decoder_sparse_step", config.decoder_sparse_step, 1


_FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "mixtral"), GgufFamily("llama", interleaved=True)),
    "smollm3": GgufFamily("smollm3", interleaved=True, differences=_smollm3_differences),
    "qwen2": GgufFamily("qwen2", is_as_wide=True),
    "qwen3": GgufFamily("qwen3"),
    "qwen3_moe": GgufFamily("qwen3moe", differences=_qwen3_moe_differences),
    "gemma": GgufFamily("gemma", norm_shift=1.0, activations=_GELU),
    "gemma2": GgufFamily(
        "gemma2",
        norm_shift=1.0,
        has_window=True,
        activations=_GELU,
        differences=_gemma_differences,
    ),
    "gemma3_text": GgufFamily(
        "gemma3",
        norm_shift=1.0,
        has_window=True,
        activations=_GELU,
        differences=_gemma_differences,
    ),
    "phi3": GgufFamily("phi3", is_as_wide=True),
    "olmo2": GgufFamily("olmo2", needs_head=True, is_as_wide=True),
    # OLMo 3 has no name of its own in llama.cpp: it is OLMo 2 with windows.
    "olmo3": GgufFamily("olmo2", has_window=True, needs_head=True, is_as_wide=True),
}
"""By transformers' model type."""


def family_of(config: Any, where: object) -> GgufFamily:
    """The family of a model.

    Args:
        config: of the model, transformers' own.
        where: its folder, for the error.

    Raises:
        CheckpointError: llama.cpp does not know the family, or computes this model otherwise.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        return _named_family(config, where)
    for key, value, expected in _differences(config, family):
        if value != expected:
            raise CheckpointError(
                f"{where}: config.json has {key}: {value}, but llama.cpp computes every "
                f"{config.model_type} model with {expected}; publish this one as safetensors."
            )
    return family


def _named_family(config: Any, where: object) -> GgufFamily:
    import gguf

    plain_name = config.model_type.replace("_", "").replace("-", "")
    for architecture in gguf.MODEL_ARCH_NAMES.values():
        if architecture.replace("-", "").replace("_", "") == plain_name:
            return GgufFamily(architecture, is_known=False)
    raise CheckpointError(
        f"{where}: is a {config.model_type!r} model, a family that llama.cpp does not have under "
        f"that name; known are {', '.join(sorted(_FAMILIES))}. Publish it as safetensors."
    )


def _differences(config: Any, family: GgufFamily) -> Iterator[Difference]:
    # Configs of Gemma have both keys, and transformers computes with this one.
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in family.activations:
        yield "hidden_act", activation, family.activations[0]
    # Only llama.cpp's Llama has places for the biases that this switches on.
    if family.architecture != "llama":
        for key in ("attention_bias", "mlp_bias"):
            yield key, bool(getattr(config, key, False)), False
    if not family.has_window and config.model_type != "phi3":  # whose window it reads and ignores
        yield "sliding_window", getattr(config, "sliding_window", None) or None, None
    if family.needs_head:
        yield "tie_word_embeddings", bool(config.tie_word_embeddings), False
    if family.is_as_wide:
        width = head_dim(config) * config.num_attention_heads
        yield "head_dim × num_attention_heads", width, config.hidden_size
    yield from _rope_differences(config, family)
    yield from family.differences(config)


def _rope_differences(config: Any, family: GgufFamily) -> Iterator[Difference]:
    rope_type = rope_values(config).get("rope_type", "default")
    allowed = [
        kind
        for kind in _ROPE
        if not (kind == "llama3" and family.architecture != "llama")
        and not (kind == "longrope" and family.architecture != "phi3")
    ]
    if rope_type not in allowed:
        yield "rope_type", rope_type, " or ".join(allowed)
    window_type = window_rope_values(config).get("rope_type", "default")
    yield "rope_type of the layers with a window", window_type, "default"
    if rope_type == "yarn":
        # In llama.cpp a factor of attention multiplies the usual one; in transformers it replaces
        # it.
        usual = 0.1 * math.log(rope_values(config)["factor"]) + 1.0
        yield "attention_factor", rope_values(config).get("attention_factor") or usual, usual
        for key in ("mscale", "mscale_all_dim"):
            yield key, rope_values(config).get(key), None
    fraction = rope_values(config).get("partial_rotary_factor", 1.0)
    if family.architecture != "phi3":
        yield "partial_rotary_factor", fraction, 1.0


def rope_values(config: Any) -> dict[str, Any]:
    """Settings of the rotary embedding; of the layers that see all positions where kinds differ."""
    values = dict(getattr(config, "rope_parameters", None) or {})
    return dict(values["full_attention"]) if "full_attention" in values else values


def window_rope_values(config: Any) -> dict[str, Any]:
    """Settings of the rotary embedding in layers with a window, where they have their own."""
    values = dict(getattr(config, "rope_parameters", None) or {})
    return dict(values.get("sliding_attention") or {})


def head_dim(config: Any) -> int:
    """Entries of one attention head."""
    own_dim = getattr(config, "head_dim", None)
    return int(own_dim or config.hidden_size // config.num_attention_heads)


def longrope_attention_factor(config: Any) -> float:
    """By what attention is scaled where positions are stretched (LongRoPE), as in Phi-3's paper."""
    rope = rope_values(config)
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = original_positions(config)
    scale = config.max_position_embeddings / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0


def original_positions(config: Any) -> int:
    """Positions that the model had before its rotary embedding was stretched."""
    own_value = getattr(config, "original_max_position_embeddings", None)
    rope_value = rope_values(config).get("original_max_position_embeddings")
    return int(rope_value or own_value or config.max_position_embeddings)
