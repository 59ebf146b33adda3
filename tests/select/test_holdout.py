"""Validation documents in two parts."""

from __future__ import annotations

from tests.helpers.fakes import made_up_set
from toolkit.select.holdout import divide, subset


def test_parts_share_nothing_and_lose_nothing():
    sets = [made_up_set("filings", "domain"), made_up_set("news", "general", 30, seed=1)]
    parts = divide(sets, 0.34, seed=5)
    assert parts.are_separate
    for items, search, confirm in zip(sets, parts.search, parts.confirm, strict=True):
        assert not set(search.ids) & set(confirm.ids)
        assert sorted([*search.ids, *confirm.ids]) == sorted(items.ids)
        assert len(confirm) == round(0.34 * len(items))
    again = divide(sets, 0.34, seed=5)
    assert [s.ids for s in again.confirm] == [s.ids for s in parts.confirm]
    assert [s.ids for s in divide(sets, 0.34, seed=6).confirm] != [s.ids for s in parts.confirm]


def test_a_subset_scores_its_own_items():
    items = made_up_set("filings", "domain")
    part = subset(items, [5, 2])
    assert part.ids == ["filings/5", "filings/2"]
    assert part.score(0.5, [1]) == items.score(0.5, [2])
    assert part.content_hash != items.content_hash


def test_too_few_to_divide_is_said():
    sets = [made_up_set("filings", "domain"), made_up_set("news", "general", 9)]
    parts = divide(sets, 0.34, seed=0)
    assert not parts.are_separate
    assert parts.confirm == parts.search == sets
    assert "news has 9 validation documents, too few to set 34% aside" in parts.note
