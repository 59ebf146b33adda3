"""Packing: which pieces of which documents stand in which block. No tokens are touched here.

Legend: D documents, P pieces, N blocks, T tokens a block. A document of n tokens has n + 1 targets:
its tokens and the separator behind it; the separator in front is its first input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class PackTable:
    """Blocks as lists of pieces.

    Attributes:
        document: number of the document each piece is cut from, `[P]`.
        start: of the piece's first input within its document, `[P]`.
        length: inputs of the piece, and as many targets, `[P]`.
        first: block n has pieces `first[n]` to `first[n + 1]`, `[N + 1]`.
    """

    document: I64
    start: I64
    length: I64
    first: I64

    def __len__(self) -> int:
        return len(self.first) - 1


def pack(num_targets: I64, block_tokens: int, method: str) -> PackTable:
    """Put every target of every document into exactly one block.

    Args:
        num_targets: of each document, `[D]`.
        block_tokens: T.
        method: `best_fit` or `concatenate`.
    """
    act = {"best_fit": pack_best_fit, "concatenate": pack_concatenated}[method]
    return act(num_targets, block_tokens)


def pack_concatenated(num_targets: I64, block_tokens: int) -> PackTable:
    """All documents in one row, cut every T inputs; only the last block has room left.

    >>> table = pack_concatenated(np.array([3, 4]), 5)
    >>> table.document.tolist(), table.start.tolist(), table.length.tolist(), table.first.tolist()
    ([0, 1, 1], [0, 0, 2], [3, 2, 2], [0, 2, 3])
    """
    ends = np.cumsum(num_targets)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends - num_targets, np.arange(0, total, block_tokens))
    cuts = cuts[cuts < total]
    document = np.searchsorted(ends, cuts, side="right")
    length = np.diff(np.concatenate([cuts, [total]]))
    first = np.searchsorted(cuts // block_tokens, np.arange(-(-total // block_tokens) + 1))
    start = cuts - (ends - num_targets)[document]
    return PackTable(document, start, length, first.astype(np.int64))


def pack_best_fit(num_targets: I64, block_tokens: int) -> PackTable:
    """Put every piece of every document into the fullest block that still has room for it.

    Only documents longer than a block are cut: into whole blocks and a rest.

    Reference:
        Ding et al. 2024, Fewer truncations improve language modeling.

    >>> table = pack_best_fit(np.array([4, 2, 6, 2]), 4)
    >>> [table.document[a:b].tolist() for a, b in zip(table.first, table.first[1:])]
    [[0], [2], [1, 2], [3]]
    """
    num_pieces = -(-num_targets // block_tokens)
    document = np.repeat(np.arange(len(num_targets)), num_pieces)
    ends = np.cumsum(num_pieces)
    start = (np.arange(len(document)) - np.repeat(ends - num_pieces, num_pieces)) * block_tokens
    length = np.minimum(num_targets[document] - start, block_tokens)
    # Longest first; equal lengths in the order given, so that this is repeatable.
    order = np.argsort(-length, kind="stable")
    document, start, length = document[order], start[order], length[order]
    block = _best_fit(length, block_tokens)
    by_block = np.argsort(block, kind="stable")
    num_blocks = int(block.max()) + 1 if len(block) else 0
    first = np.searchsorted(block[by_block], np.arange(num_blocks + 1))
    return PackTable(document[by_block], start[by_block], length[by_block], first.astype(np.int64))


def _best_fit(lengths: I64, block_tokens: int) -> I64:
    """Block of each piece; lengths fall. Open blocks are kept by their room, rooms as bits."""
    num_full = int(np.count_nonzero(lengths == block_tokens))
    block = np.arange(len(lengths), dtype=np.int64)
    open_blocks: list[list[int]] = [[] for _ in range(block_tokens + 1)]
    rooms = 0
    num_blocks = num_full
    for index, need in enumerate(lengths[num_full:].tolist(), start=num_full):
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            chosen = open_blocks[room].pop()
            if not open_blocks[room]:
                rooms ^= 1 << room
        else:
            room, chosen = block_tokens, num_blocks
            num_blocks += 1
        block[index] = chosen
        left = room - need
        if left:
            open_blocks[left].append(chosen)
            rooms |= 1 << left
    return block
