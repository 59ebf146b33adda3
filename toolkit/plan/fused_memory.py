"""What fused blocks keep (`toolkit.train.fuse`), counted from what their functions save.

Of one token in one layer: its stream before attention and before the feed-forward part in float32
(8h) and one over their root mean squares (8); and of b bytes each, 2 in bfloat16 and 4 in float32,
rotated queries and keys, and values (A + 2K), what attention gives (A), and the products of gate
and up (2I). Normed activations, scores, the product of gate and up, and copies of matrices are made
again and live no longer than one function.

Legend: as in `toolkit.plan.memory`; b bytes of an entry of a product.
"""

from __future__ import annotations

from toolkit.model_config import ShapeSection
from toolkit.plan.shape import attention_width, head_size, key_width
from toolkit.train.config import TrainSection
from toolkit.train.fuse import KINDS, may_fuse
from toolkit.train.fused_attention import TILE
from toolkit.train.precision import is_low


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


def fused_layer(shape: ShapeSection, section: TrainSection) -> float:
    """Bytes that a layer keeps of one token."""
    stream, heads = 8.0 * shape.hidden_size + 8.0, attention_width(shape) + key_width(shape)
    return stream + 2.0 * _product_bytes(section) * (heads + shape.intermediate_size)


def _product_bytes(section: TrainSection) -> float:
    return 2.0 if is_low(section) else 4.0


def fused_activations(
    shape: ShapeSection, section: TrainSection, tokens: int, sequence_tokens: int
) -> tuple[float, float]:
    """What is kept for the backward pass, and what that takes for itself.

    Args:
        shape: of the model.
        section: its precision, and its checkpointing; `selective` and `none` are the same here.
        tokens: of a micro-batch, B T.
        sequence_tokens: T.

    Returns:
        Bytes kept of one token by every layer, and bytes that the backward pass of one layer needs
        besides (with `full`, the layer computed again is part of that).
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    width = shape.intermediate_size
    layer, b = fused_layer(shape, section), _product_bytes(section)
    # The stream's gradient (4h), and its cast where there is one; beside it the product of gate and
    # up (bI), later the normed input and the gradient that goes on (2bh + 4h); matrices in a copy.
    # The gradients of gate and up are where these were.
    stream = 6.0 * h if is_low(section) else 4.0 * h
    forward_part = tokens * (stream + max(b * width, 2.0 * b * h + 4.0 * h)) + 2.0 * b * width * h
    # Scores of a tile three times in float32; gradients of keys and values in float32.
    tile = 12.0 * shape.num_attention_heads * min(TILE, sequence_tokens) * sequence_tokens
    attention = tokens * (4.0 * h + 3.0 * b * a + (8.0 + 2.0 * b) * k) + tile
    working = max(forward_part, attention)
    if section.gradient_checkpointing == "full":
        return 4.0 * h, tokens * layer + working
    return layer, working


def rotation_bytes(shape: ShapeSection) -> float:
    """Cosines and sines of one token's position, which all layers share."""
    return 8.0 * head_size(shape)
