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
    names = [name for name in checkpoint.names if is_vocabulary(name)]
    for head in (name for name in names if is_head(name)):
        info = checkpoint.info(head)
        for other in names:
            if is_head(other) or checkpoint.info(other).shape != info.shape:
                continue
            if checkpoint.info(other).dtype != info.dtype or not _are_equal(
                checkpoint, head, other
            ):
                return head
    return None


def _are_equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    a, b = checkpoint.raw(one), checkpoint.raw(other)
    return all(
        np.array_equal(a[start : start + _BLOCK_BYTES], b[start : start + _BLOCK_BYTES])
        for start in range(0, a.size, _BLOCK_BYTES)
    )
