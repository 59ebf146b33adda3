"""Causal attention for scoring on a CPU in bfloat16, as products of whole tiles.

torch's own kernel takes twice as long on sequences of a few hundred tokens (LOG.md). Scores and
their softmax are float32 here too; shares are rounded to bfloat16 before they are multiplied.

Legend: B rows, T tokens, S keys, K key/value heads, G query heads to each of them, H entries of a
head, R queries of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

TILE = 64
"""Queries whose scores exist at one time; keys after the last of them are never looked at."""


def can_attend(queries: Tensor, keys: Tensor, mask: Tensor | None) -> bool:
    """Whether `attend` does it: several tokens in bfloat16, causal or under a mask of booleans that
    leaves every query a key."""
    if queries.dtype != torch.bfloat16 or queries.shape[2] < 2:
        return False
    if mask is None:
        return queries.shape[2] == keys.shape[2]
    is_plain = mask.dtype == torch.bool and mask.shape[1] == 1
    return is_plain and bool(mask.any(-1).all())


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Attention of every row of a batch.

    Args:
        queries: `[B, K G, T, H]` bfloat16.
        keys, values: `[B, K, S, H]` bfloat16.
        mask: True where a query may look, `[B or 1, 1, T, S]`; without one the last T keys belong
            to the queries, and each looks at those before it.
        scale: of the scores.

    Returns:
        `[B, T, K G, H]` bfloat16.

    Reference:
        Vaswani et al. 2017, Attention is all you need; Ainslie et al. 2023, GQA, for the groups.
    """
    num_rows, num_heads, length, entries = queries.shape
    kinds = keys.shape[1]
    split = (num_rows, kinds, num_heads // kinds, length, entries)
    grouped = queries.view(split).transpose(2, 3)  # [B, K, T, G, H]
    out = torch.empty(num_rows, length, num_heads, entries, dtype=queries.dtype)
    with _bfloat16_products():
        for row in range(num_rows):
            all_keys = keys[row].float().transpose(1, 2)
            for start in range(0, length, TILE):
                stop = min(start + TILE, length)
                seen = stop if mask is None else keys.shape[2]
                asked = grouped[row, :, start:stop].reshape(kinds, -1, entries)  # [K, R G, H]
                scores = torch.bmm(asked.float(), all_keys[:, :, :seen]).mul_(scale)
                apart = scores.view(kinds, stop - start, -1, seen)
                if mask is None:
                    apart[..., start:].masked_fill_(_later(stop - start), float("-inf"))
                else:
                    own = mask[row if len(mask) > 1 else 0, 0, start:stop]
                    apart.masked_fill_(~own[:, None], float("-inf"))
                shares = torch.softmax(scores, -1).to(queries.dtype)
                mixed = torch.bmm(shares, values[row, :, :seen])  # [K, R G, H]
                of_tile = mixed.view(kinds, stop - start, -1, entries).transpose(0, 1)
                out[row, start:stop].view(of_tile.shape).copy_(of_tile)
    return out


def _later(count: int) -> Tensor:
    """Keys that come after a query, `[R, 1, R]`."""
    return torch.ones(count, count, dtype=torch.bool).triu_(1)[:, None]


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Products of float32 tensors that hold bfloat16 values: exact inputs, sums left in float32."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
