"""Packing by mask: the processor's instructions and the loop over bits do the same."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from toolkit.merge.kernels.source import packing, ranks

ROOM = 64 + 15


@numba.njit
def _pack(words: Any, place: int, mask: Any, room: Any, held: int) -> Any:
    return packing.pack(words, place, mask, room, held)


@numba.njit
def _unpack(flags: Any, taken: int, mask: Any) -> Any:
    return packing.unpack(flags, taken, mask)


MASKS = [0, 1, 1 << 63, 0b1011 << 14, 0x8000_0001_8000_0001, 0x0123_4567_89AB_CDEF, 2**64 - 1]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pack", [_pack, packing.pack_by_bits])
def test_words_are_put_side_by_side(mask: int, pack: Any):
    words = np.arange(1000, 1128, dtype=np.uint32)
    room = np.zeros(5 + ROOM, np.uint32)
    expected = [1030 + bit for bit in range(64) if mask >> bit & 1]
    assert pack(words, 30, np.uint64(mask), room, 5) == 5 + len(expected)
    assert room[:5].tolist() == [0] * 5
    assert room[5 : 5 + len(expected)].tolist() == expected


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("unpack", [_unpack, packing.unpack_by_bits])
def test_flags_are_put_back_in_their_places(mask: int, unpack: Any):
    flags = np.array([9, 9, 9] + [2 if i % 3 == 1 else 0 for i in range(64)], np.uint8)
    bits = [bit for bit in range(64) if mask >> bit & 1]
    expected = sum(1 << bit for i, bit in enumerate(bits) if i % 3 == 1)
    assert unpack(flags, 3, np.uint64(mask)) == expected


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("kind", ["many values", "few values"])
def test_the_kth_word_is_that_of_a_sort(size: int, kind: str):
    random = np.random.default_rng(size)
    least, width = 3 << 28, 10 << 16
    values = random.integers(least, least + (width if kind == "many values" else 7), size)
    for k in {1, 2, size // 2, size} - {0}:
        if k <= size:
            words = np.zeros(size + 64, np.uint32)
            words[:size] = values
            assert ranks.kth_word(words, size, k, least, width) == np.sort(values)[k - 1]
