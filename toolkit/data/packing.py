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
        start: place of each piece's first input within its document, `[P]`.
        length: inputs of each piece, and as many targets, `[P]`.
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
        num_targets: targets of each document, `[D]`.
        block_tokens: T.
        method: `best_fit` or `concatenate`.
    """
    pack_with = {"best_fit": pack_best_fit, "concatenate": pack_concatenated}[method]
    return pack_with(num_targets, block_tokens)


def pack_concatenated(num_targets: I64, block_tokens: int) -> PackTable:
    """All documents in one row, cut every T inputs; only the last block has room left.

    >>> table = pack_concatenated(np.array([3, 4]), 5)
    >>> table.document.tolist(), table.start.tolist(), table.length.tolist(), table.first.tolist()
    ([0, 1, 1], [0, 0, 2], [3, 2, 2], [0, 2, 3])
    """
    document_ends = np.cumsum(num_targets)
    total = int(document_ends[-1]) if len(document_ends) else 0
    document_starts = document_ends - num_targets
    # A piece begins where a document does, and where a block does.
    piece_starts = np.union1d(document_starts, np.arange(0, total, block_tokens))
    piece_starts = piece_starts[piece_starts < total]
    document = np.searchsorted(document_ends, piece_starts, side="right")
    length = np.diff(np.concatenate([piece_starts, [total]]))
    num_blocks = -(-total // block_tokens)
    first_pieces = np.searchsorted(piece_starts // block_tokens, np.arange(num_blocks + 1))
    start = piece_starts - document_starts[document]
    return PackTable(document, start, length, first_pieces.astype(np.int64))


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
    first_of_document = np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    start = (np.arange(len(document)) - first_of_document) * block_tokens
    length = np.minimum(num_targets[document] - start, block_tokens)
    # Longest first; equal lengths in the order given, so that this is repeatable.
    order = np.argsort(-length, kind="stable")
    document, start, length = document[order], start[order], length[order]
    block = _assign_best_fit(length, block_tokens)
    by_block = np.argsort(block, kind="stable")
    num_blocks = int(block.max()) + 1 if len(block) else 0
    first_pieces = np.searchsorted(block[by_block], np.arange(num_blocks + 1)).astype(np.int64)
    return PackTable(document[by_block], start[by_block], length[by_block], first_pieces)


def _assign_best_fit(lengths: I64, block_tokens: int) -> I64:
    """Block of each piece; lengths fall. Open blocks are kept by their room, rooms as bits."""
    # Whole blocks come first, a piece each: for them there is nothing to search.
    num_full = int(np.count_nonzero(lengths == block_tokens))
    block_of_piece = np.arange(len(lengths), dtype=np.int64)
    open_blocks: list[list[int]] = [[] for _ in range(block_tokens + 1)]
    rooms = 0  # bit r is set where a block with room for r more tokens is open
    num_blocks = num_full
    for piece, length in enumerate(lengths[num_full:].tolist(), start=num_full):
        # Rooms that are large enough; the lowest bit is the tightest of them. One number holds all
        # rooms, so that finding it takes the same time however many blocks are open.
        fitting_rooms = rooms >> length
        if fitting_rooms:
            room = length + (fitting_rooms & -fitting_rooms).bit_length() - 1
            chosen_block = open_blocks[room].pop()
            if not open_blocks[room]:
                rooms ^= 1 << room
        else:
            room, chosen_block = block_tokens, num_blocks
            num_blocks += 1
        block_of_piece[piece] = chosen_block
        room_left = room - length
        if room_left:
            open_blocks[room_left].append(chosen_block)
            rooms |= 1 << room_left
    return block_of_piece
