"""Validation documents in two parts."""

from __future__ import annotations

from dataclasses import fields, replace

from tests.helpers.fakes import made_up_set
from toolkit.select.holdout import divide


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


def test_a_part_has_what_belongs_to_its_items():
    items = made_up_set("filings", "domain", 6)
    whole = replace(
        items,
        item_hashes=[f"hash {n}" for n in range(6)],
        sequences=[([n, n + 1], 1) for n in range(6)],
    )
    part = whole.only([5, 2])
    for field in fields(whole):
        values = getattr(whole, field.name)
        # Whatever has an entry for each item, of whatever field.
        if isinstance(values, (list, tuple)) and len(values) == len(whole):
            assert getattr(part, field.name) == [values[5], values[2]], field.name
    assert part.sequences == [([5, 6], 1), ([2, 3], 1)]
    assert items.only([1]).sequences == ()


def test_a_watched_set_of_two_groups_is_never_wholly_set_aside():
    small = replace(made_up_set("poem", "domain", 2), role="watch")
    sets = [made_up_set("filings", "domain"), made_up_set("news", "general", 30), small]
    for fraction in (0.34, 0.75, 0.8):
        parts = divide(sets, fraction, seed=0)
        assert parts.are_separate
        assert len(parts.search[2]) >= 1


def test_a_part_scores_its_own_items():
    items = made_up_set("filings", "domain")
    part = items.only([5, 2])
    assert part.ids == ["filings/5", "filings/2"]
    assert part.score(0.5, [1]) == items.score(0.5, [2])
    assert part.content_hash != items.content_hash


def test_too_few_to_divide_is_said():
    sets = [made_up_set("filings", "domain"), made_up_set("news", "general", 9)]
    parts = divide(sets, 0.34, seed=0)
    assert not parts.are_separate
    assert parts.confirm == parts.search == sets
    assert "news has 9 validation documents, too few to set 34% aside" in parts.note
