"""Best-fit packing: documents into blocks of equal length, none seeing another.

Legend: N blocks, T tokens a block.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Label of positions without a target; the loss passes over it."""


@dataclass(frozen=True)
class PackedBlocks:
    """Blocks ready for training.

    Attributes:
        input_ids: `[N, T]` int32.
        labels: `[N, T]` int32, the token that follows each input, or `IGNORED`.
        segments: `[N, T]` int32; equal within one piece of a document, -1 in padding. Attention
            and positions stay within a segment.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    segments: NDArray[np.int32]


def cut(tokens: Sequence[int], block_tokens: int) -> list[list[int]]:
    """Cut a document into pieces of at most `block_tokens` inputs and as many targets.

    Each piece is one token longer than its inputs: its last token is only a target, and the next
    piece's first input, so every token but the document's first is a target exactly once.

    >>> cut([1, 2, 3, 4, 5], 2)
    [[1, 2, 3], [3, 4, 5]]
    """
    return [
        list(tokens[start : start + block_tokens + 1])
        for start in range(0, len(tokens) - 1, block_tokens)
    ]


def pack_best_fit(documents: Sequence[Sequence[int]], block_tokens: int, pad: int) -> PackedBlocks:
    """Put every piece of every document into the fullest block that still has room for it.

    Args:
        documents: token ids of each document, its separators included.
        block_tokens: T.
        pad: token id for what stays empty at the end of a block.

    Returns:
        Blocks in the order in which they were opened; no token is lost.

    Reference:
        Ding et al. 2024, Fewer truncations improve language modeling.
    """
    pieces = [piece for tokens in documents for piece in cut(tokens, block_tokens)]
    # Longest first; equal lengths in the order given (sorted is stable), so this is repeatable.
    order = sorted(range(len(pieces)), key=lambda index: -len(pieces[index]))
    blocks: list[list[list[int]]] = []
    rooms: list[tuple[int, int]] = []  # (room left, block), sorted
    for index in order:
        piece = pieces[index]
        need = len(piece) - 1
        place = bisect.bisect_left(rooms, (need, -1))
        if place == len(rooms):
            blocks.append([])
            room, block = block_tokens, len(blocks) - 1
        else:
            room, block = rooms.pop(place)
        blocks[block].append(piece)
        bisect.insort(rooms, (room - need, block))
    return _lay_out(blocks, block_tokens, pad)


def _lay_out(blocks: list[list[list[int]]], block_tokens: int, pad: int) -> PackedBlocks:
    shape = (len(blocks), block_tokens)
    input_ids = np.full(shape, pad, dtype=np.int32)
    labels = np.full(shape, IGNORED, dtype=np.int32)
    segments = np.full(shape, -1, dtype=np.int32)
    for row, pieces in enumerate(blocks):
        start = 0
        for number, piece in enumerate(pieces):
            stop = start + len(piece) - 1
            input_ids[row, start:stop] = piece[:-1]
            labels[row, start:stop] = piece[1:]
            segments[row, start:stop] = number
            start = stop
    return PackedBlocks(input_ids, labels, segments)
