"""What fused blocks keep (`toolkit.train.fuse`), counted from what their functions save.

Of one token in one layer: its stream before attention and before the feed-forward part in float32
(8h) and one over their root mean squares (8); rotated queries and keys, and values (2A + 4K); what
attention gives (2A); the products of gate and up (4I). Normed activations, scores, the product of
gate and up, and bfloat16 copies of matrices are made again and live no longer than one function.

Legend: as in `toolkit.plan.memory`.
"""

from __future__ import annotations

from toolkit.model_config import ShapeSection
from toolkit.plan.shape import attention_width, head_size, key_width
from toolkit.train.config import TrainSection
from toolkit.train.fuse import KINDS, may_fuse
from toolkit.train.fused_attention import TILE


def is_fused(
    shape: ShapeSection,
    section: TrainSection,
    *,
    device: str,
    sharded: bool = False,
    model_type: str | None = None,
) -> bool:
    """Whether the trainer would fuse the blocks of such a model.

    Adapters stand between a block and its matrices, and experts have no fused part.

    Args:
        shape: of the model.
        section: as in the recipe.
        device: `CPU` or `GPU`.
        sharded: FSDP.
        model_type: as in `config.json`; where nothing tells it, a Llama's blocks are supposed, as
            `shape` has no room for others.
    """
    dense = shape.num_experts is None and shape.num_parameters is None
    known = dense and (model_type is None or model_type in KINDS) and section.lora is None
    return known and may_fuse(section, "cpu" if device == "CPU" else "cuda", sharded=sharded)


def fused_layer(shape: ShapeSection) -> float:
    """Bytes that a layer keeps of one token."""
    stream, heads = 8.0 * shape.hidden_size + 8.0, attention_width(shape) + key_width(shape)
    return stream + 4.0 * heads + 4.0 * shape.intermediate_size


def fused_activations(
    shape: ShapeSection, section: TrainSection, tokens: int, sequence_tokens: int
) -> tuple[float, float]:
    """What is kept for the backward pass, and what that takes for itself.

    Args:
        shape: of the model.
        section: only its checkpointing matters; `selective` and `none` are the same here.
        tokens: of a micro-batch, B T.
        sequence_tokens: T.

    Returns:
        Bytes kept of one token by every layer, and bytes that the backward pass of one layer needs
        besides (with `full`, the layer computed again is part of that).
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    width = shape.intermediate_size
    layer = fused_layer(shape)
    # The stream's gradient and its cast (6h); those of gate and up (4I) beside their product (2I),
    # later beside the normed input and the gradient that goes on (8h), and matrices cast.
    forward_part = tokens * max(6.0 * h + 6.0 * width, 14.0 * h + 4.0 * width) + 4.0 * width * h
    # Scores of a tile three times in float32; gradients of keys and values in float32.
    tile = 12.0 * shape.num_attention_heads * min(TILE, sequence_tokens) * sequence_tokens
    attention = tokens * (4.0 * h + 6.0 * a + 12.0 * k) + tile
    working = max(forward_part, attention)
    if section.gradient_checkpointing == "full":
        return 4.0 * h, tokens * layer + working
    return layer, working


def rotation_bytes(shape: ShapeSection) -> float:
    """Cosines and sines of one token's position, which all layers share."""
    return 8.0 * head_size(shape)
