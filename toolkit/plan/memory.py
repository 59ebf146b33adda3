"""Memory of training, by component, on one device: whether it fits is known before it is tried.

The components are those of this toolkit's trainer: float32 parameters, gradients and moments,
bfloat16 copies for the products (autocast), a loss that keeps the logits of 1,024 positions.
Legend: h hidden size, L layers, A width of all heads, K of all key heads, I feed-forward width,
V vocabulary, B blocks of a micro-batch, T tokens a block, N parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from toolkit.model_config import ShapeSection
from toolkit.plan.shape import (
    active_width,
    attention_width,
    count_parameters,
    key_width,
    lora_parameters,
)
from toolkit.train.config import TrainSection

CHUNK_ROWS = 1024
"""Positions whose logits the loss keeps at one time (`toolkit.train.loss`; a test compares)."""

RUNTIME_BYTES = {"CPU": 0.55e9, "GPU": 1.5e9}
"""What a process takes before it has a model: libraries; on a GPU context, kernels and workspace
(usual figures, not measured here). On the CPU of this project: measured, `benchmarks/plan.py`."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of one device in bytes, by component.

    Attributes:
        weights: parameters in float32, and their bfloat16 copies while a micro-batch lasts.
        gradients: of what learns, float32.
        optimizer: two moments of what learns, float32.
        activations: what the backward pass needs of the layers.
        logits: the loss: logits of a chunk, and the gradient of the head.
        batch: tokens, labels, positions and the attention mask.
        runtime: libraries, workspace, and what the allocator cannot reuse.
        saving: on a CPU, the copy from which a state is written.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    batch: float
    runtime: float
    saving: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))

    @property
    def largest(self) -> str:
        """The component that takes the most."""
        return max(fields(self), key=lambda field: getattr(self, field.name)).name

    def parts(self) -> dict[str, float]:
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}


def training_memory(
    shape: ShapeSection,
    section: TrainSection,
    sequence_tokens: int,
    *,
    processes: int = 1,
    sharded: bool = False,
    device: str = "GPU",
    saves: bool = False,
) -> Memory:
    """Peak memory of one device.

    Args:
        shape: of the model.
        section: micro-batch, precision, adapters, checkpointing.
        sequence_tokens: T.
        processes: devices that train together.
        sharded: FSDP: parameters, gradients and moments are divided among them; else DDP.
        device: `CPU` or `GPU`.
        saves: whether states are written while training (their copy is in host memory, so it
            counts on a CPU only).

    Reference:
        Korthikanti et al. 2022 (activations by layer); Rajbhandari et al. 2020, ZeRO.
    """
    parameters = count_parameters(shape)
    share = processes if sharded else 1
    learns = parameters.total
    adapters = 0
    if section.lora is not None:
        learns = adapters = lora_parameters(shape, section.lora.rank)
    elif section.growth is not None:
        learns = adapters = section.growth.num_blocks * parameters.layer
    low = section.precision == "bf16"
    stored = (parameters.total + adapters) * 4.0 / share
    # Autocast keeps one bfloat16 copy of every matrix that learns; frozen ones are cast anew at
    # each use. FSDP gathers one layer, and the next one while that is computed.
    head_and_embedding = parameters.embedding + parameters.head
    copies = 2.0 * (parameters.total - head_and_embedding) if low else 0.0
    if section.lora is not None and section.gradient_checkpointing != "none":
        copies = 2.0 * (parameters.layer + adapters) if low else 0.0
    if sharded and processes > 1:
        copies = 2.0 * parameters.layer * (2.0 if low else 4.0)
    tokens = section.micro_batch_blocks * sequence_tokens
    layer_bytes = activation_bytes(shape, section, sequence_tokens)
    kept = tokens * (shape.num_hidden_layers + _new_blocks(section)) * layer_bytes[0]
    again = tokens * layer_bytes[1]
    bits = 2.0 if low else 4.0
    rows = min(CHUNK_ROWS, tokens)
    head = shape.vocab_size * shape.hidden_size
    logits = rows * shape.vocab_size * bits + (bits * head if low else 0.0)
    logits += tokens * shape.hidden_size * (8.0 + bits)
    if section.lora is None and section.growth is None:
        logits += (4.0 + bits) * head  # its gradient, and that of one chunk
    exchange = 4.0 * learns if processes > 1 and not sharded else 0.0  # DDP's buckets
    batch = tokens * (4 * 8.0 + sequence_tokens)
    return Memory(
        weights=stored + copies,
        gradients=4.0 * learns / share + exchange,
        optimizer=8.0 * learns / share,
        activations=kept + again,
        logits=logits,
        batch=batch,
        runtime=RUNTIME_BYTES[device],
        saving=12.0 * learns if saves and device == "CPU" else 0.0,
    )


def activation_bytes(
    shape: ShapeSection, section: TrainSection, sequence_tokens: int
) -> tuple[float, float]:
    """What one layer keeps of one token until the backward pass, in bytes.

    Returns:
        What every layer keeps, and what one layer needs besides while it is computed again.
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    width = active_width(shape)
    heads = shape.num_attention_heads
    if section.precision == "bf16":
        # Two norms in float32 (16 h); five casts of their results (10 h); queries, keys and values
        # repeated for every head, and the result (8 A); gate, its activation, up, product (8 I);
        # the mask as numbers.
        whole = 26.0 * h + 8.0 * a + 8.0 * width + 2.0 * sequence_tokens
        kept = 4.0 * h + 2.0 * (a + 2 * k) + 2.0 * a + 2.0 * h + 4.0 * width
    else:
        whole = 24.0 * h + 16.0 * a + 16.0 * width + 4.0 * sequence_tokens
        kept = 4.0 * h + 4.0 * (a + 2 * k) + 4.0 * a + 4.0 * h + 8.0 * width
    whole += 4.0 * heads + 8.0
    kept += 4.0 * heads
    if section.lora is not None:
        bits = 2.0 if section.precision == "bf16" else 4.0
        outputs = 2.0 * a + 2.0 * k + h + 2.0 * width  # B's product of every module
        inner = 7.0 * section.lora.rank
        whole += bits * (outputs + 2.0 * inner) + (4.0 * (3.0 * h + a + width))
        kept += bits * (outputs + h)
    if shape.num_experts is not None:
        # Tokens are sorted to their experts: another copy of what goes in and comes out.
        used = shape.num_experts_per_tok or 1
        whole += 8.0 * h * used
        kept += 4.0 * h * used
    if section.gradient_checkpointing == "none":
        return whole, 0.0
    if section.gradient_checkpointing == "selective":
        return kept, whole
    return 4.0 * h, whole


def _new_blocks(section: TrainSection) -> int:
    return section.growth.num_blocks if section.growth is not None else 0
