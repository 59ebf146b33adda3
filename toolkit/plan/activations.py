"""What a layer keeps of a token until the backward pass, of plain blocks and of fused ones.

Fused blocks (`toolkit.train.fuse`) keep less; what they keep is counted from what their functions
save. Of one token in one layer: its stream before attention and before the feed-forward part in
float32 (8h) and one over their root mean squares (8); and of b bytes each rotated queries and keys,
and values (A + 2K), what attention gives (A), and the products of gate and up (2I). Normed
activations, scores, the product of gate and up, and copies of matrices are made again and live no
longer than one function.

Legend: h hidden size, A width of all heads, K of all key heads, I feed-forward width, B blocks of a
micro-batch, T tokens per block, b bytes of an entry of a product: 2 in bfloat16 and 4 in float32.
"""

from __future__ import annotations

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.shape import active_width, attention_width, head_size, key_width
from toolkit.train.config import TrainSection
from toolkit.train.fuse import KINDS, may_fuse
from toolkit.train.fused_attention import TILE
from toolkit.train.precision import is_low


def activation_bytes(
    shape: ShapeSection, section: TrainSection, sequence_length: int, *, masked: bool = True
) -> tuple[float, float]:
    """What one layer keeps of one token until the backward pass, in bytes.

    Args:
        shape: measures of the model.
        section: precision, checkpointing, adapters.
        sequence_length: T.
        masked: whether attention takes a mask; flash-attention takes none, and keys as they are.

    Returns:
        What every layer keeps, and what one layer needs while it is computed again.
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    width, b = active_width(shape), product_bytes(section)
    all_of_it = all_of_a_layer(shape, section, sequence_length, masked)
    if section.gradient_checkpointing == "none":
        return all_of_it, 0.0
    if section.gradient_checkpointing == "full":
        return 4.0 * h, all_of_it
    # The layer's input; queries, keys, values; what attention and its projection give; gate and up.
    kept_bytes = 4.0 * h + b * ((a + 2 * k) + a + h + 2 * width) + 4.0 * shape.num_attention_heads
    if section.lora is not None:  # what B gives in every module
        kept_bytes += b * (a + 2 * k + 2 * h + 2 * width)
    if shape.num_experts is not None:
        kept_bytes += 4.0 * h * (shape.num_experts_per_tok or 1)
    return kept_bytes, all_of_it


def all_of_a_layer(
    shape: ShapeSection, section: TrainSection, sequence_length: int, masked: bool = True
) -> float:
    """All that autograd keeps of one token in one layer, counted by its hooks (a test does it
    again): norms in float32; a cast for each product; queries, keys and values repeated for every
    head, and the result; gate, its activation, up and their product; the mask as numbers."""
    h, a, width = shape.hidden_size, attention_width(shape), active_width(shape)
    # The normalizers of attention per head, and of the two norms.
    normalizer_bytes = 4.0 * shape.num_attention_heads + 8.0
    if is_low(section):
        attention_bytes = (
            8.0 * a + 2.0 * sequence_length if masked else 4.0 * (a + key_width(shape))
        )
        kept_bytes = 26.0 * h + attention_bytes + 8.0 * width + normalizer_bytes
    else:
        kept_bytes = 24.0 * h + 16.0 * a + 16.0 * width + 4.0 * sequence_length + normalizer_bytes
    if section.lora is not None:
        # Frozen norms keep no result; each A's product is kept.
        b = product_bytes(section)
        kept_bytes += (b - 8.0) * h + 7.0 * b * section.lora.rank
    if shape.num_experts is not None:
        # Tokens are sorted to their experts: another copy of what goes in and comes out.
        kept_bytes += 8.0 * h * (shape.num_experts_per_tok or 1)
    return kept_bytes


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
        shape: measures of the model.
        section: training section of the recipe.
        device: `CPU` or `GPU`.
        sharded: whether parameters are divided (FSDP).
        model_type: kind of model, as in `config.json`; where nothing tells it, a Llama's blocks are
            supposed, as `shape` has no room for others.
    """
    is_dense = shape.num_experts is None and shape.num_parameters is None
    is_known = model_type is None or model_type in KINDS
    if not is_dense or not is_known or section.lora is not None:
        return False
    return may_fuse(section, "cpu" if device == "CPU" else "cuda", sharded=sharded)


def fused_layer(shape: ShapeSection, section: TrainSection) -> float:
    """Bytes that a layer keeps of one token."""
    stream_bytes = 8.0 * shape.hidden_size + 8.0
    kept_width = attention_width(shape) + key_width(shape) + shape.intermediate_size
    return stream_bytes + 2.0 * product_bytes(section) * kept_width


def product_bytes(section: TrainSection) -> float:
    """b."""
    return 2.0 if is_low(section) else 4.0


def fused_activations(
    shape: ShapeSection, section: TrainSection, tokens: int, sequence_length: int
) -> tuple[float, float]:
    """What is kept for the backward pass, and what that takes for itself.

    Args:
        shape: measures of the model.
        section: precision and checkpointing; `selective` and `none` are the same here.
        tokens: B T.
        sequence_length: T.

    Returns:
        Bytes kept of one token by every layer, and bytes that the backward pass of one layer needs
        besides (with `full`, the layer computed again is part of that).
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    width = shape.intermediate_size
    layer_bytes, b = fused_layer(shape, section), product_bytes(section)
    # The stream's gradient (4h), and its cast where there is one; beside it the product of gate and
    # up (bI), later the normed input and the gradient that goes on (2bh + 4h); matrices in a copy.
    # The gradients of gate and up are where these were.
    stream_bytes = 6.0 * h if is_low(section) else 4.0 * h
    forward_part = (
        tokens * (stream_bytes + max(b * width, 2.0 * b * h + 4.0 * h)) + 2.0 * b * width * h
    )
    # Scores of a tile three times in float32; gradients of keys and values in float32.
    tile_bytes = 12.0 * shape.num_attention_heads * min(TILE, sequence_length) * sequence_length
    attention_part = tokens * (4.0 * h + 3.0 * b * a + (8.0 + 2.0 * b) * k) + tile_bytes
    working_bytes = max(forward_part, attention_part)
    if section.gradient_checkpointing == "full":
        return 4.0 * h, tokens * layer_bytes + working_bytes
    return layer_bytes, working_bytes


def rotation_bytes(shape: ShapeSection) -> float:
    """Cosines and sines of one token's position, which all layers share."""
    return 8.0 * head_size(shape)
