"""Kernels: which entries of a task vector stay at random (dare), and the union of those that do.

Numbers come from `stream.draw`, entry by entry, so a block needs nothing of its neighbors. What
stays is handed on as one bit an entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.sizes import LANES, TILE
from toolkit.merge.kernels.source.entries import (
    VECTOR,
    by_type,
    cut,
    deltas,
    float_of,
    larger,
    masks,
    products,
    put,
    scalars,
    word,
)
from toolkit.merge.kernels.source.join import unite
from toolkit.merge.kernels.source.primitives import cached_kernel, kernel, tiles
from toolkit.merge.kernels.stream import FIRST_MULTIPLIER, GAMMA, SECOND_MULTIPLIER

_GAMMA, _FIRST, _SECOND = (np.uint64(n) for n in (GAMMA, FIRST_MULTIPLIER, SECOND_MULTIPLIER))
_30, _27, _31 = (np.uint64(n) for n in (30, 27, 31))
_SPREAD, _PICK = np.uint64(0x0101010101010101), np.uint64(0x8040201008040201)


@kernel
def draw_into(key: Any, start: int, n: int, words: Any) -> Any:
    """Numbers `start` to `start + n` of a stream, in `words` (`[≥ n // 2 + 64]`, uint64).

    Returns:
        The numbers as halves of words, uint32, `[≥ n + 64]`: number `i` is below `density` where
        half `i` is below `limit_of(density)`.
    """
    # SplitMix64 (Steele, Lea and Flood 2014): word j is a mix of the key and j + 1 gammas, so that
    # any block of a tensor begins without the numbers before it.
    first = start // 2
    begin = key + np.uint64(first + 1) * _GAMMA
    for j in range((start + n + 1) // 2 - first):
        z = begin + np.uint64(j) * _GAMMA
        z = (z ^ (z >> _30)) * _FIRST
        z = (z ^ (z >> _27)) * _SECOND
        words[j] = z ^ (z >> _31)
    return words.view(np.uint32)[start - 2 * first :]


@kernel
def limit_of(density: Any) -> Any:
    """The half that begins the numbers which are not below a density under 1.

    Of a half the upper 24 bits count, as a multiple of 2^-24, which float32 holds exactly.
    """
    # Rounded up: a number, itself a multiple of 2^-24, is below the density exactly where it is
    # below the next multiple.
    steps = np.float64(density) * 2.0**24
    whole = np.int64(steps)
    return np.uint32((whole + np.int64(np.float64(whole) < steps)) << 8)


@kernel
def unpack_bits(mask: Any, flags: Any) -> None:
    """Bits, `[N]`, to bytes that are zero where the bit is, `[≥ 8 N]`."""
    eights = flags.view(np.uint64)
    # A byte of the mask is copied into all eight, and of each copy another bit is left.
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


@cached_kernel
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
        mask: `[8 ⌈n / 64⌉]`, uint8: the result.
    """
    words = np.empty(TILE // 2 + VECTOR, np.uint64)
    kept = mask.view(np.uint64)
    x, last = rows[model], rows[len(rows) - 1]
    is_whole = density >= np.float32(1.0)
    limit = np.uint32(0xFFFFFFFF) if is_whole else limit_of(density)
    for at in range(0, x.size, TILE):
        n = min(TILE, x.size - at)
        halves = draw_into(key, start + at, n, words)
        if is_whole:
            halves[:n] = np.uint32(0)  # below every limit
        for place in range(0, n, VECTOR):
            stays, _ = masks(halves, place, limit, np.uint32(0))
            # A tile is a multiple of 64 entries, so it begins with a word of its own.
            kept[(at + place) // VECTOR] = stays
        for part in range(0, n, LANES):
            stop = min(part + LANES, n)  # slices: an index with a sum in it is checked every time
            add_below(x[at + part : at + stop], last[at + part : at + stop], halves[part:stop],
                      limit, lanes)  # fmt: skip
    return 0


@kernel
def add_below(x: Any, base: Any, halves: Any, limit: Any, lanes: Any) -> None:
    """Add `|x - base|`, and that of entries whose half is below `limit`, to `lanes`."""
    before, after = lanes[0], lanes[1]
    for i in range(x.size):
        size = abs(float_of(word(x, i)) - float_of(word(base, i)))
        before[i] += np.float64(size)
        after[i] += np.float64(size if halves[i] < limit else np.float32(0.0))


@cached_kernel
def join_masked(
    rows: Any, bits: Any, factors: Any, ratios: Any, votes: Any, divisor: Any, scale: Any,
    out: Any,
) -> Any:  # fmt: skip
    """dare and della: the flagged entries of the task vectors, united.

    Args:
        rows: tuned models and the base last, `[n]` each.
        bits: `[M, 8 ⌈n / 64⌉]`, uint8.
        factors: `[M]`, float32.
        ratios: `[M]`, float32: what rescaling multiplies by.
        votes: True or None; and what follows: see `unite`.
        divisor: float32 or None.
        scale: float32.
        out: `[n]`.

    Returns:
        Bits of the largest magnitude among the inputs.
    """
    tuned, last = rows[:-1], rows[len(rows) - 1]
    by, restored = scalars(tuned, factors, 0), scalars(tuned, ratios, 0)
    flags = tiles(len(rows) - 1, np.uint8)
    top = np.uint32(0)
    for at in range(0, out.size, TILE):
        n = min(TILE, out.size - at)
        for m in range(len(rows) - 1):
            unpack_bits(bits[m, at // 8 : (at + n + 7) // 8], flags[m])
        everyone, some, marks = cut(rows, at, at + n), cut(tuned, at, at + n), per_row(tuned, flags)
        bases, target = last[at : at + n], out[at : at + n]
        for i in range(n):
            base = float_of(word(bases, i))
            kept = flagged(deltas(some, base, i), marks, i)
            weighted = products(products(kept, restored), by)
            put(unite(weighted, by, votes, divisor, scale, base), target, i)
            top = larger(everyone, i, top)
    return top


def per_row(rows: Any, flags: Any, m: Any = 0) -> Any:
    """The rows of a matrix as a tuple, one a row of `rows`."""
    raise NotImplementedError


@by_type(per_row)
def _per_row(rows: Any, flags: Any, m: Any = 0) -> Any:  # noqa: ARG001
    if len(rows) == 1:
        return lambda rows, flags, m=0: (flags[m],)  # noqa: ARG005
    return lambda rows, flags, m=0: (flags[m],) + per_row(rows[1:], flags, m + 1)  # noqa: RUF005


def flagged(values: Any, flags: Any, i: Any) -> Any:
    """A tuple of float32 with zero where a flag at `i` is zero."""
    raise NotImplementedError


@by_type(flagged)
def _flagged(values: Any, flags: Any, i: Any) -> Any:  # noqa: ARG001
    def last(values: Any, flags: Any, i: Any) -> Any:
        return (values[0] if flags[0][i] != np.uint8(0) else np.float32(0.0),)

    def more(values: Any, flags: Any, i: Any) -> Any:
        kept = values[0] if flags[0][i] != np.uint8(0) else np.float32(0.0)
        return (kept,) + flagged(values[1:], flags[1:], i)  # noqa: RUF005

    return last if len(values) == 1 else more
