"""The outcome in words, for each way it can end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.outcomes import interval, make_results
from toolkit.report.table import outcome_table, set_rows
from toolkit.report.verdict import kept_lines, notes, verdict


def with_changes(
    domain: dict[str, float], general: dict[str, float], **more: Any
) -> dict[str, Any]:
    results = make_results(**more)
    results["models"]["merge"] |= {"domain_change": domain, "general_change": general}
    return results


@pytest.mark.parametrize(
    ("general", "words"),
    [
        (interval(-0.02, 0.01), "Nothing is lost on general sets, which change by -0.020"),
        (
            interval(0.002, 0.004),
            "change by +0.002 bits per byte (+0.006 at most), within the 0.01",
        ),
        (interval(0.008, 0.004), "(+0.012 at most), which may be more than the 0.01 tolerated"),
        (interval(0.020, 0.004), "more than the 0.01 tolerated, which the tuning sets did not"),
    ],
)
def test_what_it_cost(general: dict[str, float], words: str):
    results = with_changes(interval(-0.14), general, loss_recovered=None)
    gain, cost = verdict(results)
    assert gain == (
        "linear alpha=0.7 gains 0.140 bits per byte on the domain, 93% of what training gained."
    )
    assert words in cost.replace("tolerated: more", "more")


def test_a_loss_undone_is_told():
    cost = verdict(make_results())[1]
    assert "with 90% of training's loss undone" in cost


def test_a_gain_that_may_be_none():
    gain, _ = verdict(with_changes(interval(-0.01, 0.02), interval(0.0)))
    assert "-0.010 (-0.030 to +0.010) bits per byte, cannot be told from none" in gain


def test_nothing_qualifies():
    kept, alone = verdict(make_results(chosen="general", any_merge=False))
    assert kept.startswith("The general model is kept")
    assert "the domain by -0.150 and general sets by +0.030" in alone


def test_notes():
    results = make_results(test_scorings=2)
    beaten, tokens, scored = notes(results)
    assert beaten.startswith("Nothing beats the plain sweep")
    assert "300,000 tokens, 75%" in tokens
    assert "scored 2 times" in scored
    for name in ("beat_sweep", "search_tokens", "test_scorings"):
        del results[name]
    assert notes(results) == []


def watched() -> dict[str, Any]:
    results = make_results()
    results["sets"].append(
        {
            "name": "social_iqa",
            "role": "watch",
            "unit": "error",
            "items_tuning": 0,
            "items_test": 90,
        }
    )
    for number, model in enumerate(("general", "specialist", "merge")):
        results["models"][model]["sets"]["social_iqa"] = interval(0.5 + number / 10, 0.05)
    return results


def test_sets_beyond_the_two_roles():
    assert set_rows(make_results()) == []  # one set a role says no more than the role
    rows = set_rows(watched())
    assert [row[:3] for row in rows][-1] == ("social_iqa", "watch, 90 items", "error")
    assert rows[-1][3][2] == "0.7000 (0.6500 to 0.7500)"


def fading() -> dict[str, Any]:
    """News gets better by training, as raw text does; the answers of the general model fade."""
    results = with_changes(interval(-0.14), interval(-0.02, 0.01), loss_recovered=None)
    results["sets"].append(
        {
            "name": "retention",
            "role": "general",
            "unit": "nats per token",
            "items_tuning": 32,
            "items_test": 32,
        }
    )
    for model, change in (("specialist", 0.24), ("merge", 0.06)):
        results["models"][model]["set_changes"] = {"retention": interval(change, 0.05)}
    results["sets_recovered"] = {"retention": interval(0.75, 0.1)}
    return results


def test_a_general_set_of_another_unit_that_fades():
    assert verdict(fading())[1] == (
        "It costs retention +0.060 (+0.010 to +0.110) nats per token, with 75% of training's loss "
        "undone."
    )
    assert kept_lines(fading())[1:] == [
        "The specialist lost 0.2400 (0.1900 to 0.2900) nats per token on retention; recovered 75% "
        "(65% to 85%) of it."
    ]


def test_a_change_that_may_be_none_is_no_loss():
    results = fading()
    for model in ("specialist", "merge"):
        results["models"][model]["set_changes"] = {"retention": interval(0.01, 0.05)}
    assert "Nothing is lost on general sets" in verdict(results)[1]
    assert kept_lines(results)[1].startswith("The specialist lost nothing on general sets")


def test_the_table_in_the_terminal(capsys: pytest.CaptureFixture[str]):
    outcome_table(watched(), Path("runs/x/merge"))
    shown = capsys.readouterr().out
    assert "bits per byte on the test sets" in shown
    assert "-0.1400 (-0.1600 to -0.1200)" in shown
    assert "social_iqa, error" in shown
    assert "Nothing beats the plain sweep" in shown
    assert "…" not in shown
    outcome_table(make_results(), Path("runs/x/merge"))
    assert "set by set" not in capsys.readouterr().out
