"""How many parameters a model has, and what a token costs: from its measures, nothing is fetched.

Legend: h hidden size, L layers, A attention heads x head size, K key-value heads x head size,
I feed-forward width, V vocabulary, T tokens a sequence, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.checkpoint.config import ShapeSection


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model by part.

    Attributes:
        total: all of them.
        active: those that one token goes through; differs for a mixture of experts.
        embedding: of the input embedding.
        head: of the output projection; 0 where it is the embedding.
        layer: of the largest layer, with all its experts.
        is_published: totals are the published ones, not counted from the measures.
    """

    total: int
    active: int
    embedding: int
    head: int
    layer: int
    is_published: bool = False

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
    used = (shape.num_experts_per_tok or 1) + shape.num_shared_experts
    return used * expert_width(shape)


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
    h, layers = shape.hidden_size, shape.num_hidden_layers
    attention = h * (2 * attention_width(shape) + 2 * key_width(shape))
    dense = attention + 2 * h + 3 * h * shape.intermediate_size
    layer, used = dense, dense
    num_dense = layers
    if shape.num_experts is not None:
        one = 3 * h * expert_width(shape)
        router = h * shape.num_experts
        layer = attention + 2 * h + router + (shape.num_experts + shape.num_shared_experts) * one
        used = attention + 2 * h + router + 3 * h * active_width(shape)
        num_dense = min(shape.num_dense_layers, layers)
    embedding = shape.vocab_size * h
    head = 0 if shape.tie_word_embeddings else embedding
    rest = embedding + head + h + num_dense * dense
    total = rest + (layers - num_dense) * layer
    active = rest + (layers - num_dense) * used
    return Parameters(
        total=shape.num_parameters or total,
        active=shape.num_active_parameters or (shape.num_parameters or total) - (total - active),
        embedding=embedding,
        head=head,
        layer=max(layer, dense) if num_dense else layer,
        is_published=shape.num_parameters is not None,
    )


def lora_parameters(shape: ShapeSection, rank: int) -> int:
    """Parameters of adapters of one rank on all linear modules but the head, as peft's
    `all-linear` puts them; experts that are one tensor for all get none.

    One matrix of `[out, in]` gets `rank * (in + out)`.
    """
    h, a, k = shape.hidden_size, attention_width(shape), key_width(shape)
    attention = (h + a) + 2 * (h + k) + (a + h)
    dense = attention + 3 * (h + shape.intermediate_size)
    if shape.num_experts is None:
        return rank * shape.num_hidden_layers * dense
    num_dense = min(shape.num_dense_layers, shape.num_hidden_layers)
    shared = 3 * (h + expert_width(shape)) * shape.num_shared_experts
    sparse = attention + shared
    return rank * (num_dense * dense + (shape.num_hidden_layers - num_dense) * sparse)


def training_flops(
    shape: ShapeSection, sequence_length: int, *, lora_rank: int | None = None, again: float = 0.0
) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 for each parameter that is multiplied, and attention over half of the sequence (it is causal).
    With adapters the weights get no gradient, which saves 2 of the 6.

    Args:
        shape: of the model.
        sequence_length: length of a block.
        lora_rank: of adapters, where only they learn.
        again: share of the forward pass that is computed twice (`recomputed`).

    Reference:
        Kaplan et al. 2020, Scaling laws for neural language models (6N); Chowdhery et al. 2022,
        PaLM, appendix B (attention).
    """
    parameters = count_parameters(shape)
    matrices = 2.0 * parameters.multiplied
    attention = 2.0 * shape.num_hidden_layers * attention_width(shape) * sequence_length
    forward = matrices + attention
    if lora_rank is None:
        return 3.0 * forward + again * forward
    adapters = 2.0 * lora_parameters(shape, lora_rank)
    return 2.0 * matrices + 3.0 * (attention + adapters) + again * forward


def recomputed(gradient_checkpointing: str) -> float:
    """Share of the forward pass that is computed a second time in the backward pass."""
    return 1.0 if gradient_checkpointing == "full" else 0.0
