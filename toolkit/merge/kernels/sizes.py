"""Sizes that kernels and their callers agree on."""

from __future__ import annotations

TILE = 2048
"""Entries of a tile: with a few models and scratch rows it stays within the first-level cache."""

LANES = 512
"""Sums of magnitudes are kept apart by place, so that the loop is a vector one, and the result the
same on every machine."""

HALVES = 1 << 16
"""Patterns of half a float32: bins of the histograms that find a rank."""

NON_FINITE = 0x7F800000
"""Bits of float32 infinity; magnitudes from here on are infinite or NaN."""

ROW_BYTES, ROW_SLACK = 34, 256
"""Scratch an entry of a row that della ranks, and entries to be added for rounding up."""
