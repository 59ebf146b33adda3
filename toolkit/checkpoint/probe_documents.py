"""Made-up documents with which a loaded model is asked what it honors before it is relied on."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

_REACH = re.compile(r"window|chunk")
_USUAL = 24
_REPEATED_FROM = 5


def most_positions(config: Any) -> int | None:
    """Tokens that a model can look at together, where its configuration says.

    Models without a limit say none, or say -1 (XLNet).
    """
    num_positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return num_positions if num_positions is not None and num_positions > 0 else None


def probe_documents(model: Any, longest: int) -> tuple[Tensor, Tensor]:
    """Two documents of random tokens, the same in every process.

    The second repeats most of the first, so that whatever leaks from one into the other is easily
    copied, and shows. Where the configuration speaks of a window or chunk, both are longer than it
    if they may be.

    Args:
        model: a causal language model.
        longest: tokens of a document at most, 6 or more; both together stay within the
            positions that the model has.

    Returns:
        Tokens of each, `[T]` int64, on the CPU; the second is up to 5 tokens shorter.
    """
    config = model.config.get_text_config()
    num_positions = most_positions(config)
    longest = max(6, min(longest, num_positions // 2 if num_positions else longest))
    reach_values = [
        value
        for name, value in config.to_dict().items()
        if _REACH.search(name) and isinstance(value, int) and value + 8 <= longest
    ]
    # Eight tokens beyond a window, so that some look back past its edge.
    num_tokens = min(longest, max([_USUAL, *(value + 8 for value in reach_values)]))
    vocabulary = int(getattr(config, "vocab_size", 0)) or len(model.get_input_embeddings().weight)
    generator = torch.Generator().manual_seed(20)
    # From 3 on: the first ids are special ones in most vocabularies.
    first = torch.randint(min(3, vocabulary - 1), vocabulary, (num_tokens,), generator=generator)
    return first, first[min(_REPEATED_FROM, num_tokens // 3) :]
