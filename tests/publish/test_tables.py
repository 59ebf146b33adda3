"""Figures of a card, set by set."""

from __future__ import annotations

import pytest

from tests.helpers.outcomes import interval, make_values, set_row
from toolkit.data.config import SourceSection
from toolkit.publish.config import PublishSection
from toolkit.publish.settings import SourceFacts, source_facts
from toolkit.publish.tables import result_rows, result_titles
from toolkit.select.results import MergeResults

SOURCES = [
    SourceFacts("news", "general", "mit", "org/news", ""),
    SourceFacts("filings", "domain", "mit", None, ""),
]


def test_each_set_has_its_own_unit_and_count():
    values = make_values(
        sets=[
            set_row("filings", "domain", "bits per byte", items_test=43),
            set_row("news", "general", "bits per byte", items_test=20),
            set_row("retention", "general", "nats per token", items_test=32),
        ]
    )
    for model, row in values["models"].items():
        fade = {"general": 0.6, "specialist": 0.9, "merge": 0.7}[model]
        row["sets"]["retention"] = interval(fade, 0.1)
        row["set_changes"]["retention"] = interval(fade - 0.6, 0.1)
    results = MergeResults.model_validate(values)
    titles = result_titles(results, SOURCES)
    assert [title.head for title in titles] == [
        "filings (domain), bits per byte (43 documents)",
        "news (general), bits per byte (20 documents)",
        "retention (general), nats per token (32 documents)",
    ]
    assert [title.slug for title in titles] == ["filings", "org/news", "retention"]
    assert [title.metric for title in titles] == [
        "bits_per_byte",
        "bits_per_byte",
        "nats_per_token",
    ]
    general, specialist, merge = result_rows(results, titles)
    assert specialist[3] == "0.9000 (0.8000 to 1.0000)<br>+0.3000 (+0.2000 to +0.4000)"
    assert general[3] == "0.6000 (0.5000 to 0.7000)"
    assert merge[:2] == (
        "this model",
        "0.8100 (0.7650 to 0.8550)<br>-0.1400 (-0.1600 to -0.1200)",
    )


@pytest.mark.parametrize(
    ("place", "origin"),
    [
        ({"files": ["a.txt"]}, "local files"),
        ({"hub": {"dataset": "org/d", "revision": "12ab"}}, "org/d@12ab"),
        (
            {"edgar": {"companies": ["AIR"], "forms": ["10-K", "20-F"], "years": [2019, 2020]}},
            "the SEC's archive (EDGAR): 10-K, 20-F filed 2019 to 2020",
        ),
        ({"edgar": {"filings": "list.jsonl"}}, "the SEC's archive (EDGAR) by a list of filings"),
    ],
)
def test_where_documents_come_from(place: dict[str, object], origin: str):
    source = SourceSection.model_validate({"role": "domain", **place})
    (facts,) = source_facts({"docs": source}, PublishSection(), {})
    assert facts.origin == origin
