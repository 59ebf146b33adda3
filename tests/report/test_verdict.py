"""The outcome in words, for each way it can end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.outcomes import interval, make_results
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
        (interval(-0.02, 0.01), "Nothing is lost on general sets: "),
        (interval(0.002, 0.004), "General sets stay within what they may lose: "),
        (interval(0.008, 0.004), "It is not shown on test that general sets stay within"),
        (interval(0.012, 0.004), "On test general sets probably lose more than is tolerated: "),
        (interval(0.020, 0.004), "On test general sets surely lose more than is tolerated: "),
    ],
)
def test_the_worse_the_test_the_harder_the_words(general: dict[str, float], words: str):
    results = with_changes(interval(-0.14), general, loss_recovered=None)
    gain, cost = verdict(results)
    assert gain == (
        "linear alpha=0.7 gains 0.140 bits per byte on the domain, 93% (88% to 98%) of what "
        "training gained."
    )
    assert cost.startswith(words)
    if general["high"] > 0.0:
        assert "the 0.01 tolerated" in cost


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (interval(0.08, 0.10), "which may be more than the 0.1 tolerated"),
        (
            interval(0.15, 0.04),
            "surely more than the 0.1 tolerated, which the validation sets did not",
        ),
        (interval(0.03, 0.02), "within the 0.1 tolerated"),
    ],
)
def test_each_general_set_is_held_against_its_own_tolerance(change: Any, words: str):
    results = fading()
    results["models"]["merge"]["set_changes"] = {"retention": change}
    cost = verdict(results)[1]
    assert words in cost
    assert "nats per token" in cost
    assert "Nothing is lost" not in cost


def test_a_loss_undone_is_told():
    assert "of training's loss undone" in verdict(make_results())[1]


def test_a_gain_that_may_be_none():
    gain, _ = verdict(with_changes(interval(-0.01, 0.02), interval(0.0)))
    assert "-0.010 (-0.030 to +0.010) bits per byte, cannot be told from none" in gain


def test_nothing_qualifies():
    kept, alone = verdict(make_results(chosen="general", any_merge=False))
    assert kept.startswith("The general model is kept")
    assert "the domain by -0.150 (-0.170 to -0.130) bits per byte" in alone
    assert "general sets by general sets +0.030" not in alone


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
            "items_validation": 0,
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
            "items_validation": 32,
            "items_test": 32,
            "tolerance": 0.1,
        }
    )
    for model, change in (("specialist", 0.24), ("merge", 0.06)):
        results["models"][model]["set_changes"] = {"retention": interval(change, 0.05)}
    results["sets_recovered"] = {"retention": interval(0.75, 0.1)}
    return results


def test_a_general_set_of_another_unit_that_fades():
    assert verdict(fading())[1] == (
        "It is not shown on test that general sets stay within what they may lose: retention "
        "+0.060 (+0.010 to +0.110) nats per token, which may be more than the 0.1 tolerated (75% "
        "(65% to 85%) of training's loss undone)."
    )
    assert kept_lines(fading())[1:] == [
        "The specialist lost 0.2400 (0.1900 to 0.2900) nats per token on retention; recovered 75% "
        "(65% to 85%) of it."
    ]


def test_a_change_that_may_be_none_is_no_loss():
    results = fading()
    for model in ("specialist", "merge"):
        results["models"][model]["set_changes"] = {"retention": interval(0.01, 0.05)}
    assert "General sets stay within what they may lose" in verdict(results)[1]
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
