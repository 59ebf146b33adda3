"""Results as types: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.outcomes import interval, make_results, make_values, set_row
from toolkit.errors import ToolkitError
from toolkit.select.results import REPORT, AchievedRow, MergeResults, read_results
from toolkit.stage import Stage, write_json


def test_the_report_is_the_dump(tmp_path: Path):
    results = make_results()
    assert results.as_json() == make_values()
    write_json(tmp_path / REPORT, results.as_json())
    assert read_results(tmp_path) == results


def test_figures_that_are_not_known_and_not_finite_are_kept(tmp_path: Path):
    values = make_values(knee=None, gain_kept=None)
    values["sweep"][2]["domain"] = interval(0.9, float("inf"))
    values["candidates"][-1] |= {"error": "no room", "parameters": {"n": 3, "on": True, "t": 0.5}}
    write_json(tmp_path / REPORT, MergeResults.model_validate(values).as_json())
    assert json.loads((tmp_path / REPORT).read_text()) == values
    last = read_results(tmp_path).candidates[-1]
    assert [type(value) for value in last.parameters.values()] == [int, bool, float]


def test_results_never_change():
    with pytest.raises(ValidationError, match="frozen"):
        make_results().chosen = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"units": {}}, "units: unknown key"),
        ({"models": {}}, r"models\.general: is missing \(and 2 more\)"),
        ({"gain_kept": {"estimate": "much"}}, r"gain_kept\.estimate: .*got 'much'"),
    ],
)
def test_a_report_of_another_version_is_one_line(
    tmp_path: Path, damage: dict[str, Any], words: str
):
    write_json(tmp_path / REPORT, make_values(**damage))
    with pytest.raises(ToolkitError, match=f"is no report of this version, .*{words}") as raised:
        read_results(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", "", "null"])
def test_a_damaged_report_is_one_line(tmp_path: Path, text: str):
    (tmp_path / REPORT).write_text(text)
    with pytest.raises(ToolkitError, match=r"report\.json: .*; run the merge stage again\.$"):
        read_results(tmp_path)


def test_a_report_that_was_changed_since_its_stage_wrote_it(tmp_path: Path):
    stage = Stage(tmp_path / "merge", {}, {}, 0)
    with stage.running() as work:
        write_json(work / REPORT, make_values())
        stage.finish({})
    assert read_results(stage.folder).chosen == "linear alpha=0.7"
    write_json(stage.folder / REPORT, make_values(chosen="linear alpha=0.9"))
    with pytest.raises(ToolkitError, match="is not as its stage wrote it"):
        read_results(stage.folder)


def test_a_role_is_of_the_sets_in_the_unit_of_its_first():
    values = make_values()
    values["sets"] += [
        set_row("retention", "general", "nats per token"),
        set_row("quiz", "domain", "error"),
    ]
    results = MergeResults.model_validate(values)
    assert [row.name for row in results.sets_of("general")] == ["news"]
    assert [row.name for row in results.sets_of("domain")] == ["filings", "quiz"]
    assert (results.unit_of("general"), results.unit_of("domain")) == ("bits per byte", "mean loss")


@pytest.mark.parametrize(
    ("asked", "stored", "is_lost"),
    [(0.5, 0.4, True), (0.5, 0.499, False), (0.0, 1e-6, False), (0.0, 0.3, True)],
)
def test_what_is_meant_to_be_nothing_may_be_a_rounding_of_it(
    asked: float, stored: float, is_lost: bool
):
    row = AchievedRow(where="all", model="law", asked=asked, computed=asked, stored=stored)
    assert row.is_lost is is_lost


def test_the_general_figure_has_a_limit_where_its_sets_have_one():
    values = make_values()
    assert MergeResults.model_validate(values).general_tolerance == 0.01
    values["sets"][1]["tolerance"] = 0.03  # its own, not the recipe's
    assert MergeResults.model_validate(values).general_tolerance == 0.03
    values["sets"].append(set_row("wiki", "general", "bits per byte", tolerance=0.02))
    assert MergeResults.model_validate(values).general_tolerance is None
