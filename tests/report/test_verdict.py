"""The outcome in words, for each way it can end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.outcomes import interval, make_results, make_values, set_row
from toolkit.report.table import outcome_table, set_rows
from toolkit.report.verdict import kept_lines, notes, verdict
from toolkit.select.results import MergeResults


def with_changes(
    domain: dict[str, float], general: dict[str, float], **more: Any
) -> dict[str, Any]:
    """Values of results in which the merge changes so, each role having one set."""
    values = make_values(**more)
    values["models"]["merge"] |= {
        "domain_change": domain,
        "general_change": general,
        "set_changes": {"filings": domain, "news": general},
    }
    return values


def parse(values: dict[str, Any]) -> MergeResults:
    return MergeResults.model_validate(values)


NOTHING_LOST: dict[str, Any] = {"loss_recovered": None, "sets_recovered": {"news": None}}


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
    gain, cost = verdict(parse(with_changes(interval(-0.14), general, **NOTHING_LOST)))
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
    values = fading()
    values["models"]["merge"]["set_changes"] = {"retention": change}
    cost = verdict(parse(values))[1]
    assert words in cost
    assert "nats per token" in cost
    assert "Nothing is lost" not in cost


def test_a_loss_undone_is_told():
    assert "of training's loss undone" in verdict(make_results())[1]


def test_a_gain_that_may_be_none():
    gain, _ = verdict(parse(with_changes(interval(-0.01, 0.02), interval(0.0))))
    assert "-0.010 (-0.030 to +0.010) bits per byte, cannot be told from none" in gain


def test_nothing_qualifies():
    kept, alone = verdict(make_results(chosen="general", any_merge=False))
    assert kept.startswith("The general model is kept")
    assert "the domain by -0.150 (-0.170 to -0.130) bits per byte" in alone
    assert "; news +0.030 (+0.021 to +0.039) bits per byte. Lower is better." in alone


def test_notes():
    results = make_results(test_scorings=2)
    beaten, tokens, arithmetic, scored = notes(results)
    assert beaten.startswith("Nothing beats the plain sweep")
    assert "300,000 tokens, 75%" in tokens
    assert arithmetic == "Every model was scored in float32 arithmetic."
    assert "scored 2 times" in scored
    assert notes(make_results(search_tokens=0, remarks=["Few."])) == [beaten, "Few.", arithmetic]


def watched() -> MergeResults:
    values = make_values()
    values["sets"].append(
        set_row("social_iqa", "watch", "error", items_validation=0, items_test=90)
    )
    for number, model in enumerate(("general", "specialist", "merge")):
        values["models"][model]["sets"]["social_iqa"] = interval(0.5 + number / 10, 0.05)
    return parse(values)


def test_sets_beyond_the_two_roles():
    assert set_rows(make_results()) == []  # one set a role says no more than the role
    rows = set_rows(watched())
    last = rows[-1]
    assert (last.name, last.role, last.unit) == ("social_iqa", "watch, 90 items", "error")
    assert last.figures[2].words() == "0.7000 (0.6500 to 0.7500)"


def fading() -> dict[str, Any]:
    """News gets better by training, as raw text does; the answers of the general model fade."""
    values = with_changes(interval(-0.14), interval(-0.02, 0.01), loss_recovered=None)
    values["sets"].append(set_row("retention", "general", "nats per token", tolerance=0.1))
    for model, change in (("specialist", 0.24), ("merge", 0.06)):
        values["models"][model]["set_changes"] = {"retention": interval(change, 0.05)}
    values["sets_recovered"] = {"retention": interval(0.75, 0.1)}
    return values


def test_a_general_set_of_another_unit_that_fades():
    assert verdict(parse(fading()))[1] == (
        "It is not shown on test that general sets stay within what they may lose: retention "
        "+0.060 (+0.010 to +0.110) nats per token, which may be more than the 0.1 tolerated (75% "
        "(65% to 85%) of training's loss undone)."
    )
    assert kept_lines(parse(fading()))[1:] == [
        "The specialist lost 0.2400 (0.1900 to 0.2900) nats per token on retention; recovered 75% "
        "(65% to 85%) of it."
    ]


def test_a_change_that_may_be_none_is_no_loss():
    values = fading()
    for model in ("specialist", "merge"):
        values["models"][model]["set_changes"] = {"retention": interval(0.01, 0.05)}
    results = parse(values)
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


def test_what_is_stored_of_what_was_asked():
    values = make_values()
    all_tensors, *layers = values["achieved"]
    results = MergeResults.model_validate(
        {**values, "achieved": [{**all_tensors, "stored": 0.431}, *layers]}
    )
    lines = [line for line in notes(results) if "is stored" in line]
    assert len(lines) == 1
    assert lines[0].startswith(
        "Of the change of specialist the merge asks for 0.5, and 0.431 is stored"
    )
    # A twentieth of it is no more than runs differ by; a method without a fraction has float32.
    for asked, computed, stored, number in [
        (0.5, 0.5, 0.49, 0), (None, 0.5, 0.43, 1), (None, None, 0.43, 0), (0.5, 0.5, None, 0),
    ]:  # fmt: skip
        row = {"where": "all", "model": "m", "asked": asked, "computed": computed, "stored": stored}
        results = MergeResults.model_validate({**values, "achieved": [row]})
        assert sum("is stored" in line for line in notes(results)) == number


def test_names_of_sets_are_no_markup(capsys: pytest.CaptureFixture[str]):
    values = make_values()
    for name in ("news [red]", "old [/b] :key:"):
        values["sets"].append(set_row(name, "watch", "bits per byte"))
        for figures in values["models"].values():
            figures["sets"][name] = figures["set_changes"][name] = interval(0.9)
    outcome_table(parse(values), Path("runs/x/merge"))
    printed = capsys.readouterr().out
    assert "news [red]" in printed
    assert "old [/b] :key:" in printed
