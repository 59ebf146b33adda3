"""Kernels: which entries of a task vector stay at random (dare), and the union of those that do.

Numbers come from `stream.draw`, entry by entry, so a block needs nothing of its neighbours. What
stays is handed on as one bit an entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import LANES, TILE
from toolkit.merge.kernels.source.join import read_task_vector, unite
from toolkit.merge.kernels.source.primitives import decode, kernel, tile, tiles
from toolkit.merge.kernels.stream import FIRST_MULTIPLIER, GAMMA, SECOND_MULTIPLIER

_GAMMA, _FIRST, _SECOND = (np.uint64(n) for n in (GAMMA, FIRST_MULTIPLIER, SECOND_MULTIPLIER))
_30, _27, _31, _56 = (np.uint64(n) for n in (30, 27, 31, 56))
_STEP = np.float32(2.0**-24)
_GATHER = np.uint64(0x0102040810204080)  # eight bytes of 0 or 1, times this: bits in the top byte
_SPREAD, _PICK = np.uint64(0x0101010101010101), np.uint64(0x8040201008040201)


@kernel
def draw_into(key: Any, start: int, n: int, words: Any, numbers: Any) -> None:
    """`stream.draw(key, start, start + n)` into `numbers`; `words` is scratch, `[≥ n // 2 + 1]`."""
    first = start // 2
    begin = key + np.uint64(first + 1) * _GAMMA
    for j in range((start + n + 1) // 2 - first):
        z = begin + np.uint64(j) * _GAMMA
        z = (z ^ (z >> _30)) * _FIRST
        z = (z ^ (z >> _27)) * _SECOND
        words[j] = z ^ (z >> _31)
    halves = words.view(np.uint32)[start - 2 * first :]
    for i in range(n):
        numbers[i] = np.float32(np.int32(halves[i] >> np.uint32(8))) * _STEP


@kernel
def pack(flags: Any, mask: Any) -> None:
    """Bytes of 0 or 1, `[8 N]`, to bits, `[N]`."""
    eights = flags.view(np.uint64)
    for i in range(mask.size):
        mask[i] = np.uint8((eights[i] * _GATHER) >> _56)


@kernel
def unpack(mask: Any, flags: Any) -> None:
    """Bits, `[N]`, to bytes that are zero where the bit is, `[≥ 8 N]`."""
    eights = flags.view(np.uint64)
    for i in range(mask.size):
        eights[i] = (np.uint64(mask[i]) * _SPREAD) & _PICK


@kernel
def add_sizes(x: Any, flags: Any, n: int, lanes: Any) -> None:
    """Add `|x|`, and `|x|` of the flagged entries, to `lanes` (`[2, LANES]`, float64)."""
    before, after = lanes[0], lanes[1]
    for start in range(0, n, LANES):
        stop = min(start + LANES, n)  # slices: an index with a sum in it is checked at every entry
        part, marked = x[start:stop], flags[start:stop]
        for i in range(part.size):
            size = np.float64(abs(part[i]))
            before[i] += size
            after[i] += size if marked[i] != np.uint8(0) else 0.0


@kernel
def thin_at_random(
    rows: Any, model: int, start: int, key: Any, density: Any, lanes: Any, mask: Any
) -> int:
    """dare: flag the entries of a task vector whose number is below `density`.

    Args:
        rows: tuned models and the base last, `[n]` each.
        model: which of them.
        start: place of the first entry in the tensor.
        key: of the model's stream, uint64.
        density: float32; from 1 on all entries stay.
        lanes: `[2, LANES]`, float64: magnitudes are added, of all entries and of those that stay.
        mask: `[⌈n / 8⌉]`, uint8: the result.
    """
    x, base = tile(np.float32), tile(np.float32)
    numbers, words, flags = tile(np.float32), tile(np.uint64), tile(np.uint8)
    flags[:] = np.uint8(0)
    for at in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - at)
        read_task_vector(rows, model, at, n, x, base)
        draw_into(key, start + at, n, words, numbers)
        for i in range(n):
            flags[i] = np.uint8((numbers[i] < density) | (density >= np.float32(1.0)))
        add_sizes(x, flags, n, lanes)
        pack(flags, mask[at // 8 : (at + n + 7) // 8])
    return 0


@kernel
def join_masked(
    rows: Any, masks: Any, factors: Any, ratios: Any, votes: bool, divisor: Any, divides: bool,
    scale: Any, out: Any,
) -> Any:  # fmt: skip
    """dare and della: the flagged entries of the task vectors, united.

    Args:
        rows: tuned models and the base last, `[n]` each.
        masks: `[M, ⌈n / 8⌉]`, uint8.
        factors: `[M]`, float32.
        ratios: `[M]`, float32: what rescaling multiplies by.
        votes: and what follows: see `unite`.
        divisor: float32.
        divides: whether to divide.
        scale: float32.
        out: `[n]`.

    Returns:
        Bits of the largest magnitude among the inputs.
    """
    num_models = len(rows) - 1
    weighted = tiles(num_models, np.float32)
    x, base = tile(np.float32), tile(np.float32)
    scratch, flags = tiles(3, np.float32), tile(np.uint8)
    top = np.uint32(0)
    for at in range(0, out.size, TILE):
        n = min(TILE, out.size - at)
        top = np.uint32(max(top, decode(rows[num_models][at : at + n], base.view(np.uint32))))
        for m in range(num_models):
            top = np.uint32(max(top, decode(rows[m][at : at + n], x.view(np.uint32))))
            unpack(masks[m, at // 8 : (at + n + 7) // 8], flags)
            row, ratio, factor = weighted[m], ratios[m], factors[m]
            for i in range(n):
                kept = x[i] - base[i] if flags[i] != np.uint8(0) else np.float32(0.0)
                row[i] = kept * ratio * factor
        unite(weighted, n, factors, votes, divisor, divides, scale, base, scratch, out[at : at + n])
    return top
