"""Kernels: task vectors trimmed by magnitude, with or without a vote on signs.

Thresholds are exact and come from a histogram in two levels: the upper 16 bits of the magnitude's
float32 pattern say which bin the wanted rank is in, the lower 16 bits of the few entries in that
bin say which value. Patterns of non-negative floats are ordered as the floats are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.merge.kernels.primitives import TILE, decode, encode, kernel

BINS = 1 << 16


@kernel
def coarse_histogram(rows: Any, model: int, counts: Any) -> None:
    """Count `|x_m - base|` by the upper 16 bits of its pattern into `counts` (`[65536]`)."""
    x, base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    bits = x.view(np.uint32)
    last = len(rows) - 1
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        decode(rows[model][start : start + n], bits)
        decode(rows[last][start : start + n], base.view(np.uint32))
        for i in range(n):
            x[i] = x[i] - base[i]
        for i in range(n):
            counts[(bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)] += 1


@kernel
def collect_bin(rows: Any, model: int, bin_index: int, found: Any) -> Any:
    """Write the lower 16 bits of every magnitude in one coarse bin into `found`, uint16.

    Few entries are in it, so most groups of eight are passed over at once.

    Returns:
        How many there are; at most as many as `found` must hold.
    """
    x, base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    bits = x.view(np.uint32)
    last = len(rows) - 1
    marks = np.empty(TILE, np.uint8)
    eights = marks.view(np.uint64)
    wanted = np.uint32(bin_index)
    count = 0
    for start in range(0, rows[0].size, TILE):
        n = min(TILE, rows[0].size - start)
        decode(rows[model][start : start + n], bits)
        decode(rows[last][start : start + n], base.view(np.uint32))
        for i in range(n):
            x[i] = x[i] - base[i]
        marks[:] = np.uint8(0)
        for i in range(n):
            marks[i] = np.uint8(((bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)) == wanted)
        for group in range((n + 7) // 8):
            if eights[group]:
                for i in range(8 * group, 8 * group + 8):
                    if marks[i]:
                        found[count] = bits[i] & np.uint32(0xFFFF)
                        count += 1
    return count


@kernel
def select_entry(entries: Any, k: int) -> int:
    """The k-th smallest of uint16 entries, from 1, by counting: many are equal in a checkpoint of
    bfloat16, which selection by partition is slow at."""
    counts = np.zeros(BINS, np.uint32)
    for i in range(entries.size):
        counts[entries[i]] += np.uint32(1)
    before = 0
    for value in range(BINS):
        before += counts[value]
        if before >= k:
            return value
    return BINS - 1


@kernel
def add_trimmed(
    rows: Any, factors: Any, low: Any, high: Any, divisor: Any, divides: bool, scale: Any, out: Any
) -> Any:
    """Task arithmetic on entries of magnitude `low_m` to `high_m`; see `vote_trimmed`."""
    x, base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    total = np.empty(TILE, np.float32)
    top = np.uint32(0)
    num_models = len(rows) - 1
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        top = max(top, decode(rows[num_models][start : start + n], base.view(np.uint32)))
        total[:n] = np.float32(0.0)
        for m in range(num_models):
            top = max(top, decode(rows[m][start : start + n], x.view(np.uint32)))
            factor, least, most = factors[m], low[m], high[m]
            for i in range(n):
                delta = x[i] - base[i]
                size = abs(delta)
                kept = delta if (size >= least) & (size <= most) else np.float32(0.0)
                total[i] = total[i] + kept * factor
        if divides:
            for i in range(n):
                total[i] = total[i] / divisor
        for i in range(n):
            total[i] = total[i] * scale + base[i]
        encode(total.view(np.uint32), out[start : start + n])
    return top


@kernel
def vote_trimmed(
    rows: Any, factors: Any, low: Any, high: Any, divides: bool, scale: Any, out: Any
) -> Any:
    """TIES: of the trimmed, weighted task vectors, sum those with the sign of the total.

    Args:
        rows: tuned models and the base last, `[n]` each.
        factors: `[M]`, float32.
        low: `[M]`, float32: smaller magnitudes count as zero.
        high: `[M]`, float32: and so do larger ones.
        divides: divide by the summed weight of the models that agree.
        scale: of the merged task vector, float32.
        out: `[n]`.

    Returns:
        Bits of the largest magnitude among the inputs.
    """
    num_models = len(rows) - 1
    weighted = np.empty((num_models, TILE), np.float32)
    base, total = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    sign, shares = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    top = np.uint32(0)
    zero = np.float32(0.0)
    for start in range(0, out.size, TILE):
        n = min(TILE, out.size - start)
        top = max(top, decode(rows[num_models][start : start + n], base.view(np.uint32)))
        total[:n] = zero
        for m in range(num_models):
            row = weighted[m]
            top = max(top, decode(rows[m][start : start + n], row.view(np.uint32)))
            factor, least, most = factors[m], low[m], high[m]
            for i in range(n):
                delta = row[i] - base[i]
                size = abs(delta)
                kept = delta if (size >= least) & (size <= most) else zero
                row[i] = kept * factor
                total[i] = total[i] + row[i]
        for i in range(n):
            sign[i] = np.float32(1.0) if total[i] >= zero else np.float32(-1.0)
        total[:n] = zero
        shares[:n] = zero
        for m in range(num_models):
            row, factor = weighted[m], factors[m]
            for i in range(n):
                value = row[i]
                agrees = value * sign[i] > zero
                total[i] = total[i] + (value if agrees else zero)
                shares[i] = shares[i] + (factor if agrees else zero)
        if divides:
            for i in range(n):
                by = shares[i]
                by = np.float32(1.0) if abs(by) < np.float32(1e-8) else by
                total[i] = total[i] / by
        for i in range(n):
            total[i] = total[i] * scale + base[i]
        encode(total.view(np.uint32), out[start : start + n])
    return top
