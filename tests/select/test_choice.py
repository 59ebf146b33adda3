"""The front of candidates and its knee."""

from __future__ import annotations

import pytest

from toolkit.select.choice import ScoredCandidate, knee, pareto_front


def test_the_front_and_its_knee():
    places = {"a": (0.0, 1.0), "b": (0.1, 0.3), "c": (0.5, 0.25), "d": (1.0, 0.0), "e": (0.6, 0.6)}
    options = [ScoredCandidate(n, x, y, 0.0, 0.5) for n, (x, y) in places.items()]
    front = pareto_front(options)
    assert front == ["a", "b", "c", "d"]
    assert knee(options, front) == "b"
    assert knee(options, front[:2]) is None


@pytest.mark.parametrize("order", [1, -1])
def test_equal_points_stand_once_on_the_front(order: int):
    twins = [ScoredCandidate(n, 0.5, 0.5, 0.0, d) for n, d in (("far", 0.9), ("near", 0.2))]
    assert pareto_front(twins[::order]) == ["near"]
