"""How many parameters a model has, and what a token costs: from its measures, nothing is fetched.

Legend: h hidden size, L layers, A attention heads x head size, K key-value heads x head size,
I feed-forward width, V vocabulary, T tokens per sequence, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.checkpoint.config import ShapeSection


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model by part.

    Attributes:
        total: number of all parameters.
        active: number that one token goes through; differs for a mixture of experts.
        embedding: number in the input embedding.
        head: number in the output projection; 0 where it is the embedding.
        layer: number in the largest layer, with all its experts.
    """

    total: int
    active: int
    embedding: int
    head: int
    layer: int

    @property
    def multiplied(self) -> int:
        """Those that a token is multiplied with: looking up an embedding costs nothing."""
        return self.active - (self.embedding if self.head else 0)


def head_size(shape: ShapeSection) -> int:
    """Width of one attention head."""
    return shape.head_dim or shape.hidden_size // shape.num_attention_heads


def attention_width(shape: ShapeSection) -> int:
    """A: width of all attention heads together."""
    return shape.num_attention_heads * head_size(shape)


def key_width(shape: ShapeSection) -> int:
    """K: width of all key (or value) heads together."""
    return (shape.num_key_value_heads or shape.num_attention_heads) * head_size(shape)


def expert_width(shape: ShapeSection) -> int:
    """Width of one expert's feed-forward layer."""
    return shape.moe_intermediate_size or shape.intermediate_size


def active_width(shape: ShapeSection) -> int:
    """Feed-forward width that one token goes through in a layer."""
    if shape.num_experts is None:
        return shape.intermediate_size
    used_experts = (shape.num_experts_per_tok or 1) + shape.num_shared_experts
    return used_experts * expert_width(shape)


def count_parameters(shape: ShapeSection) -> Parameters:
    """Count the parameters of a decoder with gated feed-forward layers and RMS norms (Llama,
    Mistral, Qwen, SmolLM, Mixtral and their like); biases, a millionth, are left out.

    >>> smol = ShapeSection(
    ...     hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    ...     intermediate_size=1536, vocab_size=49152, max_position_embeddings=8192,
    ...     tie_word_embeddings=True,
    ... )
    >>> count_parameters(smol).total
    134515008
    """
    h, num_layers = shape.hidden_size, shape.num_hidden_layers
    attention = h * (2 * attention_width(shape) + 2 * key_width(shape))
    # Three matrices, as the feed-forward part is gated, and two norms.
    dense_layer = attention + 2 * h + 3 * h * shape.intermediate_size
    sparse_layer, active_layer = dense_layer, dense_layer
    num_dense = num_layers
    if shape.num_experts is not None:
        expert_parameters = 3 * h * expert_width(shape)
        router_parameters = h * shape.num_experts
        num_stored = shape.num_experts + shape.num_shared_experts
        outside_experts = attention + 2 * h + router_parameters
        sparse_layer = outside_experts + num_stored * expert_parameters
        active_layer = outside_experts + 3 * h * active_width(shape)
        num_dense = min(shape.num_dense_layers, num_layers)
    embedding = shape.vocab_size * h
    head = 0 if shape.tie_word_embeddings else embedding
    shared_parameters = embedding + head + h + num_dense * dense_layer
    total_parameters = shared_parameters + (num_layers - num_dense) * sparse_layer
    active_parameters = shared_parameters + (num_layers - num_dense) * active_layer
    return Parameters(
        # Whoever declares the number knows of parts that measures do not tell.
        total=shape.num_parameters or total_parameters,
        active=shape.num_active_parameters
        or (shape.num_parameters or total_parameters) - (total_parameters - active_parameters),
        embedding=embedding,
        head=head,
        layer=max(sparse_layer, dense_layer) if num_dense else sparse_layer,
    )


def lora_parameters(shape: ShapeSection, rank: int) -> int:
    """Parameters of adapters of one rank on all linear modules but the head, as peft's
    `all-linear` puts them; experts that are one tensor for all get none.

    One matrix of `[out, in]` gets `rank * (in + out)`.
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    attention_widths = (h + a) + 2 * (h + k) + (a + h)
    dense_widths = attention_widths + 3 * (h + shape.intermediate_size)
    if shape.num_experts is None:
        return rank * shape.num_hidden_layers * dense_widths
    num_dense = min(shape.num_dense_layers, shape.num_hidden_layers)
    shared_widths = 3 * (h + expert_width(shape)) * shape.num_shared_experts
    sparse_widths = attention_widths + shared_widths
    return rank * (num_dense * dense_widths + (shape.num_hidden_layers - num_dense) * sparse_widths)


def training_flops(
    shape: ShapeSection, sequence_length: int, *, lora_rank: int | None = None, again: float = 0.0
) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 for each parameter that is multiplied, and attention over half of the sequence (it is causal).
    With adapters the weights get no gradient, which saves 2 of the 6.

    Args:
        shape: measures of the model.
        sequence_length: length of a block.
        lora_rank: rank of adapters, where only they learn.
        again: share of the forward pass that is computed twice (`recomputed`).

    Reference:
        Kaplan et al. 2020, Scaling laws for neural language models (6N); Chowdhery et al. 2022,
        PaLM, appendix B (attention).
    """
    parameters = count_parameters(shape)
    matrix_flops = 2.0 * parameters.multiplied
    # Scores and their products with values, 2 T A each; half of them, as attention is causal.
    attention_flops = 2.0 * shape.num_hidden_layers * attention_width(shape) * sequence_length
    forward_flops = matrix_flops + attention_flops
    if lora_rank is None:
        return 3.0 * forward_flops + again * forward_flops
    adapter_flops = 2.0 * lora_parameters(shape, lora_rank)
    # Frozen matrices still carry the gradient to the layers below: 2 of the 3 passes remain.
    return 2.0 * matrix_flops + 3.0 * (attention_flops + adapter_flops) + again * forward_flops


def recomputed(gradient_checkpointing: str) -> float:
    """Share of the forward pass that is computed a second time in the backward pass."""
    return 1.0 if gradient_checkpointing == "full" else 0.0
