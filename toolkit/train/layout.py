"""How the pieces of documents in packed blocks are handed to a model.

What a model may be told depends on its architecture: attention can be kept within pieces, by their
positions or lengths, while a recurrent state or a convolution runs on into the next piece. Then
every piece gets a row of its own.

Legend: B blocks, T tokens of a block, R rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

IGNORED = -100

Layout = Literal["lengths", "positions", "rows", "alone"]
"""`lengths`: one long row, attention is told where pieces begin (flash-attention's variable
lengths). `positions`: blocks as they are, positions begin anew with every piece, from which
transformers makes the masks of each kind of layer. `rows`: a row per piece, padded at the right.
`alone`: a forward pass per piece."""


@dataclass(frozen=True)
class ForwardPass:
    """What is handed to the model at once.

    Attributes:
        given: arguments of the model's forward pass.
        labels: `[R, L]`, -100 where there is no target.
        is_real: `[R, L]`, false in padding.
    """

    given: dict[str, object]
    labels: Tensor
    is_real: Tensor


def forward_passes(
    layout: Layout, input_ids: Tensor, labels: Tensor, segments: Tensor
) -> list[ForwardPass]:
    """Cut packed blocks into the forward passes of a layout; targets stay what they are.

    Args:
        layout: how pieces are kept apart.
        input_ids: `[B, T]` int64.
        labels: `[B, T]` int64.
        segments: `[B, T]`, equal within a piece of a document, -1 in padding.
    """
    if layout in ("rows", "alone"):
        return _passes_of_pieces(input_ids, labels, segments, apart=layout == "alone")
    # transformers looks for pieces in the positions only where no mask is given.
    model_arguments: dict[str, object] = {"attention_mask": None}
    if layout == "lengths":
        input_ids, labels = input_ids.reshape(1, -1), labels.reshape(1, -1)
        segments = number_apart(segments).reshape(1, -1)
        model_arguments |= piece_lengths(segments)
    model_arguments |= {"input_ids": input_ids, "position_ids": segment_positions(segments)}
    return [ForwardPass(model_arguments, labels, segments >= 0)]


def _passes_of_pieces(
    input_ids: Tensor, labels: Tensor, segments: Tensor, *, apart: bool
) -> list[ForwardPass]:
    """Longest pieces first, as many in a pass as fit into the room of the blocks."""
    block_tokens = segments.shape[1]
    piece_numbers, flat_segments = number_apart(segments).reshape(-1), segments.reshape(-1)
    piece_starts = torch.nonzero(piece_numbers[1:] != piece_numbers[:-1])[:, 0] + 1
    piece_edges = [0, *piece_starts.tolist(), len(piece_numbers)]
    pieces = [
        (start, stop) for start, stop in pairwise(piece_edges) if int(flat_segments[start]) >= 0
    ]
    pieces.sort(key=lambda piece: piece[0] - piece[1])  # like lengths share a pass: little padding
    room_tokens = segments.shape[0] * block_tokens
    passes: list[ForwardPass] = []
    while pieces:
        longest_piece = pieces[0][1] - pieces[0][0]
        num_rows = 1 if apart else max(1, room_tokens // longest_piece)
        pass_pieces, pieces = pieces[:num_rows], pieces[num_rows:]
        # Padding stands at the right, where no token of a causal model looks: it needs no mask.
        input_rows = input_ids.new_zeros(len(pass_pieces), longest_piece)
        row_labels = torch.full_like(input_rows, IGNORED)
        is_real = torch.zeros_like(input_rows, dtype=torch.bool)
        for row, (start, stop) in enumerate(pass_pieces):
            input_rows[row, : stop - start] = input_ids.reshape(-1)[start:stop]
            row_labels[row, : stop - start] = labels.reshape(-1)[start:stop]
            is_real[row, : stop - start] = True
        passes.append(ForwardPass({"input_ids": input_rows}, row_labels, is_real))
    return passes or [_empty_pass(input_ids)]


def _empty_pass(input_ids: Tensor) -> ForwardPass:
    """Takes part without a target, where other processes have more to compute."""
    token_row = input_ids.reshape(-1)[:1][None]
    return ForwardPass(
        {"input_ids": token_row},
        torch.full_like(token_row, IGNORED),
        torch.zeros_like(token_row, dtype=torch.bool),
    )


def even_out(passes: list[ForwardPass], input_ids: Tensor) -> list[ForwardPass]:
    """As many passes in every process: sharded parameters are gathered in all of them at once."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return passes
    most_passes = torch.tensor(len(passes), device=input_ids.device)
    torch.distributed.all_reduce(most_passes, op=torch.distributed.ReduceOp.MAX)
    return passes + [_empty_pass(input_ids)] * (int(most_passes) - len(passes))


def takes_lengths(implementation: str) -> bool:
    """Whether attention wants the lengths of packed pieces in place of a mask."""
    return implementation.startswith("flash_attention")


_LONG_BLOCK = 8_192
"""Tokens of a block from which on a mask of all pairs is worth doing without: 64 MB at this length,
sixteen times as much at four times it."""


def without_mask(layout: Layout, implementation: str, device: str, block_tokens: int) -> Layout:
    """The layout in which memory grows with a block's length, and not with its square.

    A mask that keeps packed pieces apart has an entry for every pair of tokens. Pieces in rows of
    their own need none: causal attention is known to the kernels without it. Windows and chunks
    still bring a mask of the longest row.

    Args:
        layout: that a probe found right for the model; rows are right wherever positions are.
        implementation: of attention, by transformers' name.
        device: kind of device; CPUs keep the mask, whose results are on record.
        block_tokens: tokens of a block.
    """
    is_masked = layout == "positions" and not takes_lengths(implementation)
    return "rows" if is_masked and device != "cpu" and block_tokens >= _LONG_BLOCK else layout


def number_apart(segments: Tensor) -> Tensor:
    """Segments numbered so that rows can be laid end to end, `[B, T]`.

    >>> number_apart(torch.tensor([[0, 0, 1], [0, -1, -1]])).tolist()
    [[1, 1, 2], [4, 3, 3]]
    """
    # Padding of one row and the next would else be one piece; numbers of rows lie apart by more
    # than any segment.
    row_numbers = torch.arange(segments.shape[0], device=segments.device)[:, None]
    return segments + 1 + row_numbers * (int(segments.max()) + 2)


def piece_lengths(segments: Tensor) -> dict[str, object]:
    """What flash-attention is told of packed pieces: `cu_seq_lens_*` `[S + 1]` int32, and the
    longest.

    Args:
        segments: `[1, T]`.

    >>> given = piece_lengths(torch.tensor([[7, 7, 7, 8, 9, 9]]))
    >>> given["cu_seq_lens_q"].tolist(), given["max_length_q"]
    ([0, 3, 4, 6], 3)
    """
    segment_row = segments[0]
    piece_starts = torch.nonzero(segment_row[1:] != segment_row[:-1])[:, 0] + 1
    row_end = torch.tensor([len(segment_row)], device=segment_row.device)
    piece_edges = torch.cat([torch.zeros_like(row_end), piece_starts, row_end]).to(torch.int32)
    longest_piece = int(piece_edges.diff().max())
    return {
        **{f"cu_seq_lens_{side}": piece_edges for side in "qk"},
        **{f"max_length_{side}": longest_piece for side in "qk"},
    }


def segment_positions(segments: Tensor) -> Tensor:
    """Position of each token within its segment, `[B, T]` int64.

    >>> segment_positions(torch.tensor([[0, 0, 1, 1, 1, -1]])).tolist()
    [[0, 1, 0, 1, 2, 0]]
    """
    places_in_row = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    is_first = torch.ones_like(segments, dtype=torch.bool)
    is_first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    # The place of the last start so far is where a token's segment begins.
    starts_so_far = torch.where(is_first, places_in_row, torch.zeros_like(places_in_row))
    return places_in_row - starts_so_far.cummax(dim=1).values


def packed(documents: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Documents end to end in one block: inputs, next tokens and segments, `[1, T]` each.

    >>> [x.tolist() for x in packed([torch.tensor([5, 6, 7]), torch.tensor([8, 9])])]
    [[[5, 6, 8]], [[6, 7, 9]], [[0, 0, 1]]]
    """
    token_rows = [
        torch.cat([tokens[cut] for tokens in documents]) for cut in (slice(-1), slice(1, None))
    ]
    segment_numbers = [torch.full((len(tokens) - 1,), n) for n, tokens in enumerate(documents)]
    return token_rows[0][None], token_rows[1][None], torch.cat(segment_numbers)[None]
