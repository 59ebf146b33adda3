"""Memory of training, by component, on one device: whether it fits is known before it is tried.

The components are those of this toolkit's trainer: float32 parameters, gradients and moments,
bfloat16 copies for the products (autocast), a loss that keeps the logits of 512 positions. Two
moments can be the peak: the loss, when all activations are there, and the end of the backward pass,
when all gradients are.

Legend: B blocks of a micro-batch, T tokens per block, b bytes of an entry of a product: 2 in
bfloat16 and 4 in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.activations import (
    activation_bytes,
    all_of_a_layer,
    fused_activations,
    fused_layer,
    is_fused,
    product_bytes,
    rotation_bytes,
)
from toolkit.plan.shape import count_parameters, lora_parameters
from toolkit.train.config import TrainSection
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
        gradients: float32, for what learns; at the loss only where micro-batches came before.
        optimizer: two moments for what learns, float32.
        activations: what the backward pass needs of the layers.
        logits: the loss: logits of a chunk, and the gradient of the head.
        batch: tokens, labels, positions and the attention mask.
        runtime: libraries, workspace, and (on a CPU) what the allocator cannot reuse.
        saving: on a CPU, the copy from which a state is written.
        moment: which of the two moments is the peak.
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
        bytes_by_part = self.parts()
        return max(bytes_by_part, key=lambda name: bytes_by_part[name])

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
        shape: measures of the model.
        section: micro-batch, precision, adapters, checkpointing.
        sequence_length: T.
        processes: number of devices that train together.
        sharded: FSDP, which divides parameters, gradients and moments among them; else DDP.
        device: `CPU` or `GPU`.
        saves: whether states are written while training (their copy is in host memory, so it
            counts on a CPU only).
        model_type: kind of model, as in `config.json`, where it is known.

    Reference:
        Korthikanti et al. 2022 (activations by layer); Rajbhandari et al. 2020, ZeRO.
    """
    section = precision_on(section, device)
    is_divided = sharded and processes > 1
    fused = is_fused(shape, section, device=device, sharded=is_divided, model_type=model_type)
    on_cpu = device == "CPU"
    setup = _Setup(shape, section, sequence_length, processes, is_divided, on_cpu, fused)
    # Which of the two is higher depends on length and vocabulary, so both are computed.
    at_loss, at_end = _memory_at_peaks(setup, saves=saves and on_cpu)
    return max(at_loss, at_end, key=lambda memory: memory.total)


@dataclass(frozen=True)
class _Setup:
    """What one device computes in a micro-batch.

    Attributes:
        shape: measures of the model.
        section: training section with its precision settled.
        sequence_length: T.
        processes: number of devices that train together.
        is_divided: whether they share parameters, gradients and moments (FSDP).
        on_cpu: whether the device is a CPU.
        fused: whether blocks are fused.
    """

    shape: ShapeSection
    section: TrainSection
    sequence_length: int
    processes: int
    is_divided: bool
    on_cpu: bool
    fused: bool

    @property
    def tokens(self) -> int:
        """B T."""
        return self.section.micro_batch_size * self.sequence_length

    @property
    def low(self) -> bool:
        return is_low(self.section)

    @property
    def is_masked(self) -> bool:
        """Whether attention takes a mask: flash-attention and fused blocks take none."""
        on_sdpa = self.on_cpu or not self.low or self.section.attn_implementation in _MASKED
        return on_sdpa and not self.fused

    @property
    def is_partial(self) -> bool:
        """Whether only what was added to the model learns."""
        return self.section.lora is not None or self.section.block_expansion is not None

    @property
    def num_added(self) -> int:
        """Parameters of adapters or of added blocks."""
        if self.section.lora is not None:
            return lora_parameters(self.shape, self.section.lora.rank)
        if self.section.block_expansion is not None:
            return self.section.block_expansion.num_blocks * count_parameters(self.shape).layer
        return 0

    @property
    def num_learned(self) -> int:
        return self.num_added if self.is_partial else count_parameters(self.shape).total

    @property
    def num_shares(self) -> int:
        return self.processes if self.is_divided else 1

    @property
    def num_head(self) -> float:
        """Entries of the output head."""
        return float(self.shape.vocab_size * self.shape.hidden_size)


def _memory_at_peaks(setup: _Setup, *, saves: bool) -> tuple[Memory, Memory]:
    """Memory at the loss, and at the end of the backward pass."""
    kept_bytes, working_bytes = _activations(setup)
    logit_bytes = _loss_bytes(setup)
    gradient_bytes = 4.0 * setup.num_learned / setup.num_shares
    is_replicated = setup.processes > 1 and not setup.is_divided
    bucket_bytes = 4.0 * setup.num_learned if is_replicated else 0.0  # DDP's
    # Gradients of micro-batches before this one are there already.
    step_size = setup.section.micro_batch_size * setup.processes
    has_several = setup.section.global_batch_size > step_size
    head_gradient = 0.0 if setup.is_partial else 4.0 * setup.num_head
    # A layer goes backward only when the logits are gone; the head's gradient waits for its turn.
    freed_bytes = logit_bytes - (head_gradient if setup.fused else 0.0)
    at_loss = Memory(
        weights=_weight_bytes(setup),
        gradients=bucket_bytes + (gradient_bytes if has_several else 0.0),
        optimizer=8.0 * setup.num_learned / setup.num_shares,
        activations=kept_bytes + max(0.0, working_bytes - freed_bytes),
        logits=logit_bytes,
        batch=_batch_bytes(setup),
        runtime=_runtime_bytes(setup, kept_bytes),
        saving=12.0 * setup.num_learned if saves else 0.0,
        moment="loss",
    )
    # A tied embedding gets a second gradient, from the input's side.
    tied_gradient = head_gradient if setup.shape.tie_word_embeddings else 0.0
    last_layer = working_bytes if setup.section.gradient_checkpointing != "none" else 0.0
    if setup.fused:  # the embedding's turn comes when the first layer is done
        last_layer = max(0.0, working_bytes - tied_gradient)
    at_end = replace(
        at_loss,
        gradients=bucket_bytes + gradient_bytes + tied_gradient,
        activations=last_layer,
        logits=0.0,
        moment="backward",
    )
    return at_loss, at_end


def _activations(setup: _Setup) -> tuple[float, float]:
    """Bytes that all layers keep until the backward pass, and that one layer needs in it."""
    section, tokens = setup.section, setup.tokens
    num_layers = setup.shape.num_hidden_layers
    num_layers += section.block_expansion.num_blocks if section.block_expansion else 0
    if setup.fused:
        per_token, working_bytes = fused_activations(
            setup.shape, section, tokens, setup.sequence_length
        )
    else:
        per_token, again_per_token = activation_bytes(
            setup.shape, section, setup.sequence_length, masked=setup.is_masked
        )
        working_bytes = tokens * again_per_token
    return tokens * num_layers * per_token, working_bytes


def _loss_bytes(setup: _Setup) -> float:
    """The loss: logits of a chunk, states with their gradients, the head's copy and gradient."""
    shape, tokens, b = setup.shape, setup.tokens, product_bytes(setup.section)
    logit_bytes = min(CHUNK_ROWS, tokens) * shape.vocab_size * b
    state_bytes = tokens * shape.hidden_size * (8.0 + b)
    copied_head = b * setup.num_head if setup.low else 0.0
    if setup.is_partial:
        return logit_bytes + (state_bytes + copied_head)
    # The gradient of a few rows of the head at a time, which float32 adds up in place.
    rows_gradient = b * min(HEAD_ROWS, shape.vocab_size) * shape.hidden_size if setup.low else 0.0
    return logit_bytes + (state_bytes + copied_head) + 4.0 * setup.num_head + rows_gradient


def _weight_bytes(setup: _Setup) -> float:
    """Parameters in float32, and what is in another form while a micro-batch lasts.

    Autocast keeps a bfloat16 copy of every matrix that learns; of a frozen one only where the
    backward pass is promised it. FSDP gathers one layer, the next while that is computed, and the
    embedding. Fused blocks make their copies one by one.
    """
    section, parameters = setup.section, count_parameters(setup.shape)
    stored_bytes = (parameters.total + setup.num_added) * 4.0 / setup.num_shares
    if setup.fused:
        return stored_bytes
    if setup.is_divided:
        # One layer is computed while the next one is gathered.
        gathered_parameters = 2.0 * parameters.layer + parameters.embedding
        return stored_bytes + gathered_parameters * product_bytes(section)
    if not setup.low:
        return stored_bytes
    copied_parameters = parameters.total - parameters.embedding - parameters.head
    if section.lora is not None and section.gradient_checkpointing != "none":
        copied_parameters = parameters.layer
    return stored_bytes + 2.0 * (copied_parameters + setup.num_added)


def _batch_bytes(setup: _Setup) -> float:
    """Four numbers of 8 bytes per token, its row of the mask, and what its position turns by."""
    mask_bytes = setup.sequence_length if setup.is_masked else 0.0
    batch_bytes = setup.tokens * (4 * 8.0 + mask_bytes)
    return batch_bytes + (setup.tokens * rotation_bytes(setup.shape) if setup.fused else 0.0)


def _runtime_bytes(setup: _Setup, kept: float) -> float:
    """Libraries, and on a CPU what glibc's allocator holds and cannot reuse.

    Blocks below 32 MB come from one heap, whose gaps stay. The shares are fits, not laws: of plain
    blocks to twelve configurations; of fused ones, which ask for fewer and larger pieces, to
    `selective` and `full` at 2 x 512 (dev/LOG.md); in float32, whose pieces are larger, the share
    of what is kept to these and to 4 x 512.
    """
    if not setup.on_cpu:
        return RUNTIME_BYTES["GPU"]
    section, shape, tokens = setup.section, setup.shape, setup.tokens
    if setup.fused:
        one_layer = tokens * fused_layer(shape, section)
        return RUNTIME_BYTES["CPU"] + ((0.25 if setup.low else 0.45) * kept + 2.5 * one_layer)
    one_layer = tokens * all_of_a_layer(shape, section, setup.sequence_length)
    return RUNTIME_BYTES["CPU"] + (0.25 * kept + (10.0 if setup.low else 7.5) * one_layer)
