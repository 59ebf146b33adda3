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
    return not name.endswith(".bias") or len(shape) == 4


def says_packed(name: str) -> bool:
    """Whether a tensor stands beside a weight whose stored values are not the weight itself.

    >>> says_packed("q_proj.weight_scale_inv"), says_packed("q_proj.weight")
    (True, False)
    """
    return bool(_PACKED.search(name))
