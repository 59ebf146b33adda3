"""Heads that a model stores beside its embedding: copies, or weights of their own.

What is stored is believed before `tie_word_embeddings`: transformers 5 ties an embedding and a head
that are both stored only where they are equal, whatever the config says.
"""

from __future__ import annotations

import numpy as np

from toolkit.checkpoint.read import Checkpoint
from toolkit.checkpoint.tensor_names import is_head, is_vocabulary

_BLOCK_BYTES = 1 << 24


def own_head(checkpoint: Checkpoint) -> str | None:
    """The head of a model that differs from its input embedding; None where there is none.

    Reads as much of both as is equal. Of heads in other shapes than the embedding's nothing is
    said: they can be no copies, and no config can tie them.
    """
    vocabulary_names = [name for name in checkpoint.names if is_vocabulary(name)]
    for head_name in (name for name in vocabulary_names if is_head(name)):
        head_info = checkpoint.info(head_name)
        for other_name in vocabulary_names:
            if is_head(other_name) or checkpoint.info(other_name).shape != head_info.shape:
                continue
            is_same_type = checkpoint.info(other_name).dtype == head_info.dtype
            if not (is_same_type and _are_equal(checkpoint, head_name, other_name)):
                return head_name
    return None


def _are_equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    a, b = checkpoint.raw(one), checkpoint.raw(other)
    # Block by block, so that tensors that differ at their beginning are not read to the end.
    return all(
        np.array_equal(a[start : start + _BLOCK_BYTES], b[start : start + _BLOCK_BYTES])
        for start in range(0, a.size, _BLOCK_BYTES)
    )
