"""Which block comes where: exact shares, every block once a pass, found without a list."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from toolkit.data.config import DataSection
from toolkit.data.mixture import (
    Share,
    block_of,
    permuted,
    place,
    plain_counts,
    stage_counts,
    taken,
    tokens_by_source,
)
from toolkit.errors import DataError


def test_every_source_has_its_count_and_is_spread_evenly():
    counts = [70, 20, 10]
    seen: Counter[int] = Counter()
    for position in range(100):
        source, before = place(position, counts)
        assert before == seen[source]
        assert taken(position, counts) == [seen[number] for number in range(3)]
        seen[source] += 1
        for number, count in enumerate(counts):
            assert abs(seen[number] - (position + 1) * count / 100) <= 1.5
    assert [seen[number] for number in range(3)] == counts


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000])
def test_a_permutation_has_everything_once(size: int):
    order = [permuted(i, size, ("k", 1)) for i in range(size)]
    assert sorted(order) == list(range(size))
    if size > 10:
        assert order != sorted(order)
        assert order != [permuted(i, size, ("k", 2)) for i in range(size)]


def test_passes_differ_in_order_and_not_in_blocks():
    share = Share("s", 50, 100)
    order = [block_of(1, "stage", share, n) for n in range(100)]
    assert sorted(order[:50]) == sorted(order[50:]) == list(range(50))
    assert order[:50] != order[50:]


def test_far_positions_are_found_at_once():
    counts = [10**12, 3 * 10**11]
    began = time.perf_counter()
    for position in range(10**12, 10**12 + 200):
        source, number = place(position, counts)
        block_of(0, "s", Share("x", counts[source], counts[source]), number)
    assert time.perf_counter() - began < 0.5


def section(**changes: object) -> DataSection:
    values = {
        "sources": {
            "a": {"role": "domain", "files": ["a"]},
            "b": {"role": "domain", "files": ["b"], "weight": 2.0},
            "web": {"role": "general", "files": ["w"]},
        },
        "replay_fraction": 0.25,
    }
    return DataSection.model_validate({**values, **changes})


def test_replay_is_a_share_of_tokens():
    # Domain: 10 blocks of 90 tokens, and 5 of 100 seen twice: 1,900. A quarter of all: 633 general
    # tokens, in blocks of 80: 8.
    blocks, targets = {"a": 10, "b": 5, "web": 50}, {"a": 900, "b": 500, "web": 4000}
    assert plain_counts(section(), blocks, targets) == {"a": 10, "b": 10, "web": 8}


def test_too_little_general_text_is_an_error():
    with pytest.raises(DataError, match=r"replay_fraction: 0\.25 .* needs 633 tokens"):
        plain_counts(section(), {"a": 10, "b": 5, "web": 1}, {"a": 900, "b": 500, "web": 100})


def test_stages_take_their_shares_of_tokens():
    data = section(
        stages=[
            {"name": "one", "tokens": 1000, "mixture": {"a": 3, "web": 1}},
            {"name": "two", "tokens": 400, "mixture": {"b": 1.0}},
        ]
    )
    blocks, targets = {"a": 10, "b": 5, "web": 50}, {"a": 1000, "b": 500, "web": 5000}
    assert stage_counts(data, 0, blocks, targets) == {"a": 8, "web": 2}
    assert stage_counts(data, 1, blocks, targets) == {"b": 4}
    assert tokens_by_source(data) == {"a": 751, "b": 401, "web": 251}
    with pytest.raises(DataError, match=r"stages\.1\.mixture\.b: 400 tokens would repeat its 50"):
        stage_counts(data, 1, {"b": 1}, {"b": 50})


def test_a_stage_that_names_no_source_is_refused():
    with pytest.raises(ValueError, match="there is no source 'c'"):
        section(stages=[{"name": "one", "tokens": 10, "mixture": {"c": 1}}])


def test_a_general_source_without_weight_has_what_the_others_leave():
    sources = {
        "a": {"role": "domain", "files": ["a"]},
        "web": {"role": "general", "files": ["w"], "weight": 0.5},
        "news": {"role": "general", "files": ["n"]},
    }
    blocks = {"a": 60, "web": 100, "news": 100}
    counts = plain_counts(section(sources=sources), blocks, {"a": 600, "web": 1000, "news": 1000})
    assert counts == {"a": 60, "web": 10, "news": 10}
    # All that there is would do, but not of the one source.
    with pytest.raises(DataError, match="100 of them from web, which holds 20"):
        plain_counts(section(sources=sources), blocks, {"a": 600, "web": 20, "news": 1000})
    sources["web"]["weight"] = 1.0
    with pytest.raises(ValueError, match="add up to 1; lower them"):
        section(sources=sources)


def test_names_of_sources_hold_no_slash():
    with pytest.raises(ValueError, match="must hold no slash"):
        section(sources={"a/b": {"role": "domain", "files": ["a"]}})
