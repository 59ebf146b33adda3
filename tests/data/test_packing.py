"""Packing loses no token, and cuts no more than it must."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.data.packing import PackTable, pack, pack_best_fit


def blocks(table: PackTable) -> list[list[tuple[int, int, int]]]:
    rows = list(
        zip(table.document.tolist(), table.start.tolist(), table.length.tolist(), strict=True)
    )
    return [rows[a:b] for a, b in zip(table.first, table.first[1:], strict=False)]


def test_worked_example():
    # Blocks of 4. Documents of 4, 2 and 2 targets: two full blocks.
    assert blocks(pack_best_fit(np.array([4, 2, 2]), 4)) == [[(0, 0, 4)], [(1, 0, 2), (2, 0, 2)]]


def test_a_long_document_is_cut_into_whole_blocks_and_a_rest():
    assert blocks(pack_best_fit(np.array([10]), 4)) == [[(0, 0, 4)], [(0, 4, 4)], [(0, 8, 2)]]


def test_concatenation_cuts_at_the_end_of_a_block():
    table = pack(np.array([3, 4, 2]), 4, "concatenate")
    assert blocks(table) == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 3), (2, 0, 1)], [(2, 1, 1)]]


@pytest.mark.parametrize("method", ["best_fit", "concatenate"])
def test_every_target_is_in_exactly_one_block(method: str):
    sizes = np.random.default_rng(0).integers(1, 70, size=200)
    table = pack(sizes, 16, method)
    seen = sorted(
        (document, start + i)
        for block in blocks(table)
        for document, start, length in block
        for i in range(length)
    )
    assert seen == [(d, i) for d, size in enumerate(sizes.tolist()) for i in range(size)]
    assert max(sum(length for _, _, length in block) for block in blocks(table)) <= 16


def test_best_fit_wastes_little():
    sizes = np.array([16, 10, 6, 8, 8, 4])  # 52 targets
    assert len(pack_best_fit(sizes, 16)) == 4  # the fewest that could hold 52


@pytest.mark.parametrize("method", ["best_fit", "concatenate"])
def test_nothing_packs_into_nothing(method: str):
    assert len(pack(np.zeros(0, dtype=np.int64), 16, method)) == 0
