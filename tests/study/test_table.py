"""Tables of claims in a page that is otherwise written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.errors import ConfigError
from toolkit.study.results import JudgedClaim, StudyResults
from toolkit.study.table import claim_lines, markdown_table, measured_text, replace_tables

FIGURES: dict[str, Any] = {
    "recipe": "mine@laptop",
    "description": "A system",
    "command": "toolkit study run mine@laptop",
    "finished": "2026-11-25T03:00:00+00:00",
    "confidence": 0.95,
    "claims": [
        {
            "claim": "Replay | prevents\nforgetting",
            "source": "2403.08763",
            "address": "https://arxiv.org/abs/2403.08763",
            "mark": "S",
            "measure": {
                "of": "weak",
                "against": "none",
                "test_set": "general",
                "expect": "lower",
                "unit": "difference",
                "than": None,
                "within": None,
                "fraction_of": None,
            },
            "interval": {"estimate": -0.02, "low": -0.03, "high": -0.01},
            "together": {"estimate": -0.02, "low": -0.04, "high": -0.005},
            "unit": "bits per byte",
            "verdict": "agrees",
            "note": "",
        }
    ],
    "figures": {
        "general": {
            "unit": "bits per byte",
            "num_items": 12,
            "num_groups": 9,
            "models": {"none": 1.02, "weak": 1.0},
            "notes": ["few items"],
        }
    },
}


def results(**changes: Any) -> StudyResults:
    return StudyResults.model_validate({**FIGURES, **changes})


def with_measure(shown: str = "bits per byte", *, note: str = "", **changes: Any) -> JudgedClaim:
    claim = FIGURES["claims"][0]
    measure = {**claim["measure"], **changes}
    return JudgedClaim.model_validate({**claim, "unit": shown, "measure": measure, "note": note})


def test_words_of_each_unit():
    assert measured_text(
        with_measure("relative", unit="relative", expect="equal", within=0.05)
    ) == (
        "general text, weak - none: -2.0 % [-4.0 %, -0.5 %] of the loss of none "
        "(expected within 5 %)"
    )
    share = with_measure("fraction", unit="fraction", fraction_of="general", expect="higher")
    assert measured_text(share) == (
        "general text, weak: -2.0 % [-4.0 %, -0.5 %] of the way from none to general "
        "(expected above 50 %)"
    )
    change = with_measure(of=["a", "b"], against=["c", "d"], test_set="filings")
    assert measured_text(change).startswith("filings, (b - a) - (d - c): -0.0200 [")
    assert measured_text(with_measure(note="too close")) == "general text: too close"


def test_table_says_date_command_interval_and_losses():
    text = markdown_table(results())
    assert "`toolkit study run mine@laptop`, 2026-11-25" in text
    assert (
        "| Replay \\| prevents forgetting | [2403.08763](https://arxiv.org/abs/2403.08763), S | "
        "general text, weak - none: -0.0200 [-0.0400, -0.0050] bits per byte (expected below 0) | "
        "**agrees** |"
    ) in text
    assert "| none | 1.0200 |" in text
    assert "general: 12 in 9 groups" in text
    assert "few items" in text
    assert any("agrees" in line for line in claim_lines(results()))


def test_text_by_hand_stays():
    page = replace_tables("", [results()])
    page = page.replace("## mine@laptop\n", "## A heading of ours\n\nBefore.\n") + "\nAfter.\n"
    changed = results(description="Another")
    again = replace_tables(page, [changed, results(recipe="other")])
    assert "## A heading of ours\n\nBefore.\n" in again
    assert "\nAfter.\n" in again
    assert "A system. " in again.split("## other")[1]
    assert "A system. " not in again.split("## other")[0]
    assert replace_tables(again, [changed]) == again


@pytest.mark.parametrize(
    "page",
    [
        "<!-- study mine@laptop: begin -->",
        "<!-- study mine@laptop: end --> <!-- study mine@laptop: begin -->",
    ],
)
def test_broken_markers_are_not_guessed_at(page: str):
    with pytest.raises(ConfigError, match="must stand once each"):
        replace_tables(page, [results()])
