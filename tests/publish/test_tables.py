"""Figures of a card, set by set."""

from __future__ import annotations

import pytest

from tests.helpers.outcomes import interval, make_values, set_row
from toolkit.data.config import SourceSection
from toolkit.publish.config import PublishSection
from toolkit.publish.settings import SourceFacts, source_facts, training_facts
from toolkit.publish.tables import result_rows, result_titles, table
from toolkit.select.results import MergeResults

SOURCES = [
    SourceFacts("news", "general", "mit", "org/news", ""),
    SourceFacts("filings", "domain", "mit", None, ""),
]


def test_a_bar_stays_in_its_cell():
    # GFM reads a backslash with the sign after it: of two before a bar, the bar ends the cell.
    first = table(("a", "b"), [("x|y\nz", "c\\|d"), ("p\\", "q")]).splitlines()[2:]
    assert first == ["| x\\|y z | c\\\\\\|d |", "| p\\ | q |"]


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
        "retention (general), nats per token (32 items)",
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
    ("schedule", "words"),
    [
        (
            {"kind": "cosine", "warmup_fraction": 0.005, "final_lr_fraction": 0.0125},
            "cosine, re-warmed over 0.5% of the steps, down to 1.25% of the peak",
        ),
        ({"kind": "minimum", "warmup_fraction": 0.02, "final_lr_fraction": 0.1},
         "minimum, down to 10% of the peak"),
        (
            {"kind": "wsd", "warmup_fraction": 0.07, "decay_fraction": 0.2, "final_lr_fraction": 0},
            "wsd, re-warmed over 7% of the steps, falling in the last 20% of them, down to 0% of "
            "the peak",
        ),
    ],
)  # fmt: skip
def test_a_schedule_is_told_with_its_figures(schedule: dict[str, object], words: str):
    facts = training_facts({}, {"config": {"train": {"schedule": schedule}}})
    assert facts["schedule"] == words


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
