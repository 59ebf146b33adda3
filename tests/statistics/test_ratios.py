"""Sums over sums."""

from __future__ import annotations

import math

import pytest

from toolkit.statistics.ratios import bits_per_byte, group_sums


def test_worked_example():
    # 8 nats·ln2 over 4 bytes and 4 over 4: 12 bits over 8 bytes
    assert bits_per_byte([8 * math.log(2), 4 * math.log(2)], [4, 4]) == pytest.approx(1.5)


def test_group_sums_keep_the_order_of_first_items():
    assert group_sums([[1, 2, 4], [1, 1, 1]], ["b", "a", "b"]).tolist() == [[5, 2], [2, 1]]
