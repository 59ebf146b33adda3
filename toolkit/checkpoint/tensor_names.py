"""What the name of a tensor says of it: a row per token, a buffer, a part of a packed weight."""

from __future__ import annotations

import re

_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|shared)\.weight$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|output_layer|proj_out)\.weight$")
_BUFFER = re.compile(
    r"(?:^|\.)(?:inv_freq|cos_cached|sin_cached|masked_bias|position_ids|"
    r"(?:attn|attention)\.bias)$"
)
_PACKED = re.compile(
    r"(?:weight_scale|weight_scale_inv|weight_scale_2|input_scale|qweight|qzeros|SCB|absmax|"
    r"weight_packed|weight_zero_point)$"
)


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has a row a token: input embedding or output head.

    >>> [is_vocabulary(n) for n in ("lm_head.weight", "model.embed_tokens.weight", "norm.weight")]
    [True, True, False]
    """
    return bool(_HEAD.search(name) or _EMBEDDING.search(name))


def is_head(name: str) -> bool:
    """Whether a tensor is an output head, by its name."""
    return bool(_HEAD.search(name))


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor was never trained: positions, rotary frequencies, causal masks.

    >>> is_buffer("h.0.attn.bias", (1, 1, 1024, 1024)), is_buffer("h.0.attn.bias", (2304,))
    (True, False)
    """
    if not _BUFFER.search(name):
        return False
    # GPT-2 calls its causal mask `attn.bias`, of four dimensions; a bias that learned has one.
    return not name.endswith(".bias") or len(shape) == 4


def says_packed(name: str) -> bool:
    """Whether a tensor stands beside a weight whose stored values are not the weight itself.

    >>> says_packed("q_proj.weight_scale_inv"), says_packed("q_proj.weight")
    (True, False)
    """
    return bool(_PACKED.search(name))


def contains(name: str, wanted: str) -> bool:
    """Whether a filter is contained in a tensor's name, or in its other one.

    Mixtral's experts are stored as `block_sparse_moe.experts.0.w1` and are `mlp` to transformers,
    whose words for the three projections (gate, up, down) are those of dense models.

    >>> name = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
    >>> contains(name, "mlp"), contains(name, "down_proj"), contains(name, "self_attn")
    (True, True, False)
    """
    return wanted in name or (_MIXTURE in name and wanted in _other_name(name))


_MIXTURE = ".block_sparse_moe."
_PROJECTIONS = {".w1.": ".gate_proj.", ".w3.": ".up_proj.", ".w2.": ".down_proj."}


def _other_name(name: str) -> str:
    name = name.replace(_MIXTURE, ".mlp.")
    for own_word, other_word in _PROJECTIONS.items():
        name = name.replace(own_word, other_word)
    return name
