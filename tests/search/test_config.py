"""What a recipe says of a search, held against what is always tried."""

from __future__ import annotations

import pytest

from toolkit.search.config import SearchSection


@pytest.mark.parametrize(
    ("num_specialists", "beside_a_base", "fewest"), [(0, False, 9), (0, True, 10), (3, False, 12)]
)
def test_there_is_room_for_all_that_is_always_tried(
    num_specialists: int, beside_a_base: bool, fewest: int
):
    # Two models and seven points of the sweep; three specialists; the end of a sweep of changes.
    names = ("law", "news", "chat")[:num_specialists]
    for num_trials in (9, fewest - 1, fewest):
        if num_trials < 9:
            continue
        faults = SearchSection(num_trials=num_trials).find_faults(
            (), names, beside_a_base=beside_a_base
        )
        found = [str(fault) for fault in faults if fault.where == "search.num_trials"]
        assert len(found) == (num_trials < fewest)
        assert all(f"must be at least {fewest}: the two models" in text for text in found)


def test_the_grid_s_number_is_a_limit():
    faults = SearchSection(num_trials=2, sampler="grid").find_faults((), ("law", "news"))
    assert not [fault for fault in faults if fault.where == "search.num_trials"]
    with pytest.raises(ValueError, match="must be at least 9: the two models and the sweep of 7"):
        SearchSection(num_trials=8)
