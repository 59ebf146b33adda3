"""Splits go by hash: disjoint, stable, and never through a group that belongs to one split."""

from __future__ import annotations

from toolkit.data.config import SourceSection
from toolkit.data.sources import Document
from toolkit.data.split import assign_split

SOURCE = SourceSection.model_validate(
    {
        "role": "domain",
        "files": ["x.txt"],
        "split": {
            "train": {"groups": ["aapl*"]},
            "validation": {"groups": ["tgt*"], "fraction": 0.4},
            "test": {"groups": ["tgt*"], "fraction": 0.6},
        },
    }
)


def documents(group: str, count: int) -> list[Document]:
    return [Document(f"s/{group}#{n}", "s", group, "text") for n in range(count)]


def test_a_group_open_to_one_split_goes_there_whole():
    assert {assign_split(d, SOURCE, 0) for d in documents("aapl_2025", 50)} == {"train"}


def test_a_group_open_to_two_is_divided_by_share():
    splits = [assign_split(d, SOURCE, 0) for d in documents("tgt_2026", 2000)]
    assert set(splits) == {"validation", "test"}
    assert abs(splits.count("validation") / 2000 - 0.4) < 0.04


def test_a_group_open_to_none_is_left_out():
    assert assign_split(documents("msft", 1)[0], SOURCE, 0) is None


def test_the_split_depends_on_the_document_and_the_seed_alone():
    few, many = documents("tgt", 10), documents("tgt", 500)
    first = [assign_split(d, SOURCE, 3) for d in few]
    assert [assign_split(d, SOURCE, 3) for d in many][:10] == first
    assert [assign_split(d, SOURCE, 4) for d in many] != [assign_split(d, SOURCE, 3) for d in many]


def test_a_group_can_be_kept_together():
    values = SOURCE.model_dump()
    together = SourceSection.model_validate({**values, "group_together": True})
    for company in range(20):
        splits = {assign_split(d, together, 0) for d in documents(f"tgt_{company}", 30)}
        assert len(splits) == 1
    assert {assign_split(documents(f"tgt_{n}", 1)[0], together, 0) for n in range(40)} == {
        "validation",
        "test",
    }
