"""Memory of training, by component, on one device: whether it fits is known before it is tried.

The components are those of this toolkit's trainer: float32 parameters, gradients and moments,
bfloat16 copies for the products (autocast), a loss that keeps the logits of 512 positions. Two
moments can be the peak: the loss, when all activations are there, and the end of the backward pass,
when all gradients are. On a CPU blocks may be fused, which keep less (`toolkit.plan.memory`).

Legend: h hidden size, L layers, A width of all heads, K of all key heads, I feed-forward width,
V vocabulary, B blocks of a micro-batch, T tokens a block, N parameters.

What fused blocks keep (`toolkit.train.fuse`), counted from what their functions save.

Of one token in one layer: its stream before attention and before the feed-forward part in float32
(8h) and one over their root mean squares (8); and of b bytes each, 2 in bfloat16 and 4 in float32,
rotated queries and keys, and values (A + 2K), what attention gives (A), and the products of gate
and up (2I). Normed activations, scores, the product of gate and up, and copies of matrices are made
again and live no longer than one function.

Legend: as in `toolkit.plan.memory`; b bytes of an entry of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.shape import (
    active_width,
    attention_width,
    count_parameters,
    head_size,
    key_width,
    lora_parameters,
)
from toolkit.train.config import TrainSection
from toolkit.train.fuse import KINDS, may_fuse
from toolkit.train.fused_attention import TILE
from toolkit.train.loss import CHUNK_ROWS, HEAD_ROWS
from toolkit.train.precision import is_low, precision_on

RUNTIME_BYTES = {"CPU": 0.55e9, "GPU": 1.5e9}
"""What a process takes without a model: libraries and their buffers; on a GPU context, kernels and
workspace. The CPU's is measured (`make bench-plan`), the GPU's a usual figure, not measured."""

_MASKED = ("eager", "sdpa")
"""What attention takes a mask; `auto` is flash-attention on a GPU, where it is installed."""

_COMPONENTS = (
    "weights", "gradients", "optimizer", "activations", "logits", "batch", "runtime", "saving",
)  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Peak memory of one device in bytes, by component, as they are at the moment of the peak.

    Attributes:
        weights: parameters in float32, and their bfloat16 copies while a micro-batch lasts.
        gradients: of what learns, float32; at the loss only where micro-batches came before.
        optimizer: two moments of what learns, float32.
        activations: what the backward pass needs of the layers.
        logits: the loss: logits of a chunk, and the gradient of the head.
        batch: tokens, labels, positions and the attention mask.
        runtime: libraries, workspace, and (on a CPU) what the allocator cannot reuse.
        saving: on a CPU, the copy from which a state is written.
        moment: of the peak.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    batch: float
    runtime: float
    saving: float = 0.0
    moment: Literal["loss", "backward"] = "loss"

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    @property
    def largest(self) -> str:
        """The component that takes the most."""
        parts = self.parts()
        return max(parts, key=lambda name: parts[name])

    def parts(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in _COMPONENTS}


def training_memory(
    shape: ShapeSection,
    section: TrainSection,
    sequence_length: int,
    *,
    processes: int = 1,
    sharded: bool = False,
    device: str = "GPU",
    saves: bool = False,
    model_type: str | None = None,
) -> Memory:
    """Peak memory of one device.

    Args:
        shape: of the model.
        section: micro-batch, precision, adapters, checkpointing.
        sequence_length: T.
        processes: devices that train together.
        sharded: FSDP: parameters, gradients and moments are divided among them; else DDP.
        device: `CPU` or `GPU`.
        saves: whether states are written while training (their copy is in host memory, so it
            counts on a CPU only).
        model_type: as in `config.json`, where it is known.

    Reference:
        Korthikanti et al. 2022 (activations by layer); Rajbhandari et al. 2020, ZeRO.
    """
    section = precision_on(section, device)
    parameters = count_parameters(shape)
    share = processes if sharded else 1
    low = is_low(section)
    bits = 2.0 if low else 4.0
    partly = section.lora is not None or section.block_expansion is not None
    added = _added_parameters(shape, section)
    learns = added if partly else parameters.total
    tokens = section.micro_batch_size * sequence_length

    fused = is_fused(
        shape, section, device=device, sharded=sharded and processes > 1, model_type=model_type
    )
    on_sdpa = device == "CPU" or not is_low(section) or section.attn_implementation in _MASKED
    masked = on_sdpa and not fused
    if fused:
        keeps, working = fused_activations(shape, section, tokens, sequence_length)
    else:
        keeps, once = activation_bytes(shape, section, sequence_length, masked=masked)
        working = tokens * once
    kept = tokens * _layers(shape, section) * keeps
    head = float(shape.vocab_size * shape.hidden_size)
    logits = min(CHUNK_ROWS, tokens) * shape.vocab_size * bits
    logits += tokens * shape.hidden_size * (8.0 + bits) + (bits * head if low else 0.0)
    if not partly:
        # Its gradient; that of a few tokens of one chunk, which float32 adds up in place.
        logits += 4.0 * head
        logits += bits * min(HEAD_ROWS, shape.vocab_size) * shape.hidden_size if low else 0.0
    gradients = 4.0 * learns / share
    exchange = 4.0 * learns if processes > 1 and not sharded else 0.0  # DDP's buckets
    several = section.global_batch_size > section.micro_batch_size * processes
    weights = (parameters.total + added) * 4.0 / share
    if not fused:
        weights += _copies(shape, section, sharded=sharded and processes > 1)
    batch = tokens * (4 * 8.0 + (sequence_length if masked else 0.0))
    batch += tokens * rotation_bytes(shape) if fused else 0.0
    runtime = RUNTIME_BYTES[device]
    if device == "CPU":
        if fused:
            runtime += _unused_fused(kept, tokens * fused_layer(shape, section), low=low)
        else:
            runtime += _unused(section, kept, tokens * _whole(shape, section, sequence_length))
    saving = 12.0 * learns if saves and device == "CPU" else 0.0
    # A layer goes backward only when the logits are gone; the head's gradient waits for its turn.
    gone = logits - (4.0 * head if fused and not partly else 0.0)
    at_loss = Memory(
        weights, exchange + (gradients if several else 0.0), 8.0 * learns / share,
        kept + max(0.0, working - gone), logits, batch, runtime, saving, "loss",
    )  # fmt: skip
    tied = 4.0 * head if shape.tie_word_embeddings and not partly else 0.0
    last = working if section.gradient_checkpointing != "none" else 0.0
    if fused:  # the embedding's turn comes when the first layer is done
        last = max(0.0, working - tied)
    at_end = Memory(
        weights, exchange + gradients + tied, 8.0 * learns / share, last,
        0.0, batch, runtime, saving, "backward",
    )  # fmt: skip
    return max(at_loss, at_end, key=lambda memory: memory.total)


def _added_parameters(shape: ShapeSection, section: TrainSection) -> int:
    if section.lora is not None:
        return lora_parameters(shape, section.lora.rank)
    if section.block_expansion is not None:
        return section.block_expansion.num_blocks * count_parameters(shape).layer
    return 0


def _layers(shape: ShapeSection, section: TrainSection) -> int:
    return shape.num_hidden_layers + (
        section.block_expansion.num_blocks if section.block_expansion else 0
    )


def _copies(shape: ShapeSection, section: TrainSection, *, sharded: bool) -> float:
    """Weights in another form while a micro-batch lasts.

    Autocast keeps a bfloat16 copy of every matrix that learns; of a frozen one only where the
    backward pass is promised it. FSDP gathers one layer, the next while that is computed, and the
    embedding.
    """
    parameters = count_parameters(shape)
    low = is_low(section)
    if sharded:
        return (2.0 * parameters.layer + parameters.embedding) * (2.0 if low else 4.0)
    if not low:
        return 0.0
    matrices = parameters.total - parameters.embedding - parameters.head
    if section.lora is None or section.gradient_checkpointing == "none":
        return 2.0 * (matrices + _added_parameters(shape, section))
    return 2.0 * (parameters.layer + _added_parameters(shape, section))


def _unused(section: TrainSection, kept: float, layer: float) -> float:
    """What glibc's allocator holds and cannot reuse: blocks below 32 MB come from one heap, whose
    gaps stay. A fit to twelve configurations measured before any block was fused, not a law."""
    return 0.25 * kept + (10.0 if is_low(section) else 7.5) * layer


def _unused_fused(kept: float, layer: float, *, low: bool) -> float:
    """The same where blocks are fused, which ask for fewer and larger pieces: fitted to
    `selective` and `full` at 2 x 512 (dev/LOG.md); in float32, whose pieces are larger, the share
    of what is kept to these and to 4 x 512."""
    return (0.25 if low else 0.45) * kept + 2.5 * layer


def activation_bytes(
    shape: ShapeSection, section: TrainSection, sequence_length: int, *, masked: bool = True
) -> tuple[float, float]:
    """What one layer keeps of one token until the backward pass, in bytes.

    Args:
        shape: of the model.
        section: precision, checkpointing, adapters.
        sequence_length: T.
        masked: attention takes a mask; flash-attention takes none, and keys as they are.

    Returns:
        What every layer keeps, and what one layer needs while it is computed again.
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    width, whole = active_width(shape), _whole(shape, section, sequence_length, masked)
    bits = 2.0 if is_low(section) else 4.0
    if section.gradient_checkpointing == "none":
        return whole, 0.0
    if section.gradient_checkpointing == "full":
        return 4.0 * h, whole
    # The layer's input; queries, keys, values; what attention and its projection give; gate and up.
    kept = 4.0 * h + bits * ((a + 2 * k) + a + h + 2 * width) + 4.0 * shape.num_attention_heads
    if section.lora is not None:  # what B gives in every module
        kept += bits * (a + 2 * k + 2 * h + 2 * width)
    if shape.num_experts is not None:
        kept += 4.0 * h * (shape.num_experts_per_tok or 1)
    return kept, whole


def _whole(
    shape: ShapeSection, section: TrainSection, sequence_length: int, masked: bool = True
) -> float:
    """All that autograd keeps of one token in one layer, counted by its hooks (a test does it
    again): norms in float32; a cast for each product; queries, keys and values repeated for every
    head, and the result; gate, its activation, up and their product; the mask as numbers."""
    h, a, width = shape.hidden_size, attention_width(shape), active_width(shape)
    few = 4.0 * shape.num_attention_heads + 8.0
    if is_low(section):
        attention = 8.0 * a + 2.0 * sequence_length if masked else 4.0 * (a + key_width(shape))
        whole = 26.0 * h + attention + 8.0 * width + few
    else:
        whole = 24.0 * h + 16.0 * a + 16.0 * width + 4.0 * sequence_length + few
    if section.lora is not None:
        # Frozen norms keep no result; each A's product is kept.
        bits = 2.0 if is_low(section) else 4.0
        whole += (bits - 8.0) * h + 7.0 * bits * section.lora.rank
    if shape.num_experts is not None:
        # Tokens are sorted to their experts: another copy of what goes in and comes out.
        whole += 8.0 * h * (shape.num_experts_per_tok or 1)
    return whole


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
    shape: ShapeSection, section: TrainSection, tokens: int, sequence_length: int
) -> tuple[float, float]:
    """What is kept for the backward pass, and what that takes for itself.

    Args:
        shape: of the model.
        section: its precision, and its checkpointing; `selective` and `none` are the same here.
        tokens: of a micro-batch, B T.
        sequence_length: T.

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
    tile = 12.0 * shape.num_attention_heads * min(TILE, sequence_length) * sequence_length
    attention = tokens * (4.0 * h + 3.0 * b * a + (8.0 + 2.0 * b) * k) + tile
    working = max(forward_part, attention)
    if section.gradient_checkpointing == "full":
        return 4.0 * h, tokens * layer + working
    return layer, working


def rotation_bytes(shape: ShapeSection) -> float:
    """Cosines and sines of one token's position, which all layers share."""
    return 8.0 * head_size(shape)
