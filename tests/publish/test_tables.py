"""Figures of a card, by role and by set."""

from __future__ import annotations

from typing import Any

from toolkit.publish.tables import result_rows, result_titles


def interval(estimate: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1}


SOURCES = [{"name": "news", "role": "general"}, {"name": "filings", "role": "domain"}]


def by_role() -> dict[str, Any]:
    models = {
        name: {"domain": interval(value), "domain_change": interval(value - 1.0)}
        for name, value in (("general", 1.0), ("specialist", 0.8), ("merge", 0.9))
    }
    return {"models": models, "test": {"domain": 43}}


def test_by_role_where_there_are_no_sets():
    titles = result_titles(by_role(), SOURCES)
    assert [title.head for title in titles] == ["domain, bits per byte (43 documents)"]
    assert titles[0].name == "filings (domain, 43 documents)"
    assert result_rows(by_role(), titles)[2] == (
        "this model",
        "0.9000 (0.8000 to 1.0000)<br>-0.1000 (-0.2000 to +0.0000)",
    )


def test_each_set_has_its_own_unit_and_count():
    results = by_role()
    results["sets"] = [
        {"name": "filings", "role": "domain", "unit": "bits per byte", "items_test": 43},
        {"name": "retention", "role": "general", "unit": "nats per token", "items_test": 32},
    ]
    for model, row in results["models"].items():
        fade = {"general": 0.6, "specialist": 0.9, "merge": 0.7}[model]
        row["sets"] = {"filings": row["domain"], "retention": interval(fade)}
        row["set_changes"] = {"filings": row["domain_change"], "retention": interval(fade - 0.6)}
    titles = result_titles(results, SOURCES)
    assert [title.head for title in titles] == [
        "filings (domain), bits per byte (43 documents)",
        "retention (general), nats per token (32 documents)",
    ]
    assert [title.metric for title in titles] == ["bits_per_byte", "nats_per_token"]
    specialist = result_rows(results, titles)[1]
    assert specialist[2] == "0.9000 (0.8000 to 1.0000)<br>+0.3000 (+0.2000 to +0.4000)"
    assert result_rows(results, titles)[0][2] == "0.6000 (0.5000 to 0.7000)"
