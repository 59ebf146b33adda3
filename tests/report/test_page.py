"""The page as text: whole, escaped, the same bytes, and fit for the results of any recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.outcomes import (
    AGAIN,
    ANSWERS,
    MERGE_YAML,
    interval,
    make_results,
    make_training,
    make_values,
    set_row,
    training_rows,
)
from toolkit.report.again import Again, again_of
from toolkit.report.measured_section import PromptAnswers
from toolkit.report.page import write_page
from toolkit.report.table import outcome_table
from toolkit.report.training_section import TrainingRow, thin
from toolkit.select.results import MergeResults


def page(folder: Path, results: MergeResults | dict[str, Any], **parts: Any) -> str:
    path = folder / "report.html"
    results = MergeResults.model_validate(results)
    write_page(results, path, merge_yaml=MERGE_YAML, **parts)
    return path.read_text(encoding="utf-8")


def whole(folder: Path, results: MergeResults) -> str:
    return page(folder, results, training=training_rows(), answers=ANSWERS, again=AGAIN)


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="([a-z]+)"', html)


def test_every_part_stands(tmp_path: Path):
    html = whole(tmp_path, make_results())
    found = ["test", "front", "sweep", "history", "training", "documents", "answers"]
    assert sections(html) == [*found, "achieved", "candidates", "again"]
    assert html.count('<div class="plot') == 2 + 1 + 2 + 1 + 4 + 4
    assert "make merge DOMAIN=finance" in html
    assert len(html) < 3_000_000
    assert html == whole(tmp_path, make_results())  # the same inputs, the same bytes


def test_nothing_comes_from_the_network(tmp_path: Path):
    html = whole(tmp_path, make_results())
    assert "default-src 'none'" in html
    assert not re.search(r"\bsrc=|@import|url\(|fetch\(|XMLHttp|import\(", html)
    assert set(re.findall(r'href="(.)', html)) == {"#"}
    assert set(re.findall(r"https?://[^\"' ]+", html)) == {"http://www.w3.org/2000/svg"}


def test_missing_figures_leave_their_part_out(tmp_path: Path):
    """The results of a plain search: neither sweep nor documents."""
    nothing = {"front": [], "sweep": [], "documents": [], "achieved": []}
    results = make_results(**nothing, knee=None, search_tokens=0)
    html = page(tmp_path, results)
    assert sections(html) == ["test", "front", "history", "candidates", "again"]
    assert "domain, bits per byte (filings, 40 items)" in html


def test_the_ladder_is_told_step_by_step(tmp_path: Path):
    def step(alpha: float, bound: float, change: float | None) -> dict[str, Any]:
        test = {"name": "retention", "loss": bound - 0.02, "bound": bound, "tolerance": 0.1,
                "unit": "nats per token", "is_within": bound <= 0.1}  # fmt: skip
        return {"alpha": alpha, "name": f"linear alpha={alpha:g}", "domain_change": change,
                "is_within": bound <= 0.1, "tests": [test]}  # fmt: skip

    ladder = [step(0.6, 0.08, None), step(0.7, 0.0951, -0.1337), step(0.8, 0.1234, None)]
    html = page(tmp_path, make_results(ladder=ladder))
    assert "The sweep as a ladder" in html
    for words in ("+0.0951", "-0.1337", "+0.1234", "not shown to stay within"):
        assert words in html
    assert html.count("not shown to stay within</td>") == 1
    assert "The sweep as a ladder" not in page(tmp_path, make_results())


def test_the_general_model_is_kept(tmp_path: Path):
    results = make_results(
        chosen="general", any_merge=False, gain_kept=None, loss_recovered=None, front=[], knee=None
    )
    html = page(tmp_path, results)
    assert "The general model is kept" in html
    assert "of the gain kept" not in html


def test_a_general_set_in_its_own_unit_has_its_front_and_its_sweep(tmp_path: Path):
    results = make_values()
    results["sets"].append(set_row("retention", "general", "nats per token", tolerance=0.1))
    for row in results["candidates"]:
        row["values"]["retention"] = 0.6
    for row in results["sweep"][:3]:
        row["sets"] = {"retention": {"estimate": 0.6, "low": 0.5, "high": 0.7}}
    html = page(tmp_path, results)
    assert html.count(">retention, nats per token (down is better)</p>") == 2
    assert "general model + 0.1 tolerated" in html
    assert "from 0.6000 at α = 0 to 0.6000 at α = 0.2" in html


def test_the_line_of_what_is_tolerated_is_that_of_the_sets(tmp_path: Path):
    results = make_values()
    results["sets"][1]["tolerance"] = 0.03
    html = page(tmp_path, results)
    assert "general model + 0.03 tolerated" in html
    assert "general model + 0.01 tolerated" not in html
    # Of sets with tolerances of their own no line holds for the mean.
    results["sets"].append(set_row("wiki", "general", "bits per byte", tolerance=0.02))
    assert "tolerated</text>" not in page(tmp_path, results)


def test_a_watched_set_of_one_group_has_no_ends(tmp_path: Path):
    results = make_values()
    results["sets"].append(set_row("poem", "watch", "bits per byte", groups_test=1))
    for figures in results["models"].values():
        figures["sets"]["poem"] = figures["set_changes"]["poem"] = interval(0.9, float("inf"))
    assert "poem" in page(tmp_path, results)
    outcome_table(MergeResults.model_validate(results), tmp_path)


def test_a_set_with_test_items_only_has_no_front(tmp_path: Path):
    results = make_values()
    row = set_row("answers", "general", "nats per token", items_validation=0)
    results["sets"].append(row)
    html = page(tmp_path, results)
    assert ">answers, nats per token (down is better)</p>" not in html
    assert '<th scope="col">answers</th>' not in html


def test_what_fades_on_a_set_in_another_unit_is_among_the_first_figures(tmp_path: Path):
    results = make_values()
    results["sets"].append(set_row("retention", "general", "nats per token", tolerance=0.1))
    lost = {"estimate": 0.053, "low": 0.028, "high": 0.08}
    for row in results["models"].values():
        row["set_changes"] = {"retention": lost, "news": lost}
    header = page(tmp_path, results).partition("<main>")[0]
    assert "<dt>change on retention</dt><dd>+0.053<small>+0.028 to +0.080 nats" in header
    assert "change on news" not in header  # it is the mean of general sets itself


def test_a_weight_beyond_the_specialist_stands_within_the_chart(tmp_path: Path):
    results = make_values()
    results["sweep"].append({**results["sweep"][-1], "alpha": 1.25})
    html = page(tmp_path, results)
    section = html.partition('<section id="sweep"')[2].partition("</section>")[0]
    places = [float(x) for x in re.findall(r'<svg class="mark s1" x="([\d.]+)%"', section)]
    assert max(places) == 100.0
    assert 80.0 in places  # α = 1


def test_long_names_stand_in_the_key_and_not_in_the_chart(tmp_path: Path):
    results = make_results()
    html = page(tmp_path, results)
    assert ">chosen</text>" in html
    assert "</svg> chosen: linear alpha=0.7</li>" in html


def test_what_the_figures_cannot_show_is_said(tmp_path: Path):
    remark = "filings: its 43 items come from 1 group: intervals hold for more items of the same."
    assert remark in page(tmp_path, make_results(remarks=[remark]))


BAD = "<script>alert('x')</script>\"'&"


def test_everything_is_escaped(tmp_path: Path):
    results = make_values(recipe=BAD, description=BAD, reason=BAD)
    row = results["candidates"][2]
    row |= {"name": f"linear {BAD}", "method": BAD, "parameters": {BAD: BAD}}
    results["chosen"] = row["name"]
    results["beat_sweep"]["sentence"] = BAD
    results["sets"][0] |= {"name": BAD, "unit": BAD}
    for document in results["documents"]:
        document |= {"id": BAD, "set": BAD}
    answers = [PromptAnswers(prompt=BAD, general=BAD, specialist=BAD, merge=BAD)]
    again = Again((BAD,), BAD, {BAD: BAD}, {BAD: BAD})
    html = page(tmp_path, results, answers=answers, again=again)
    assert "<script>alert" not in html
    assert html.count("<script>") == html.count("</script>") == 1
    assert not re.search(r"data-marks=\"[^\"]*<", html)


def test_what_is_needed_to_run_it_again_names_no_machine():
    recipe = {
        "model": {"path": "/home/someone/models/mine"},
        "files": ["/data/x.txt", "y/*.txt"],
        "search": {"num_trials": 9, "storage": "postgresql://me:secret@host/db"},
    }
    again = again_of("mine", recipe, {"general": "ab"})
    assert "/home" not in again.recipe
    assert "num_trials: 9" in again.recipe
    assert "secret" not in again.recipe
    assert "path: mine" in again.recipe
    assert "y/*.txt" in again.recipe
    assert again.commands[-1] == "make merge DOMAIN=mine"
    assert {"cpt-toolkit", "torch"} <= set(again.versions)


def test_a_text_that_begins_with_a_slash_is_no_place():
    prompts = ["/no_think What is a debt?", "/no_think", "/", f"/{'long ' * 2000}"]
    given = again_of("mine", {"prompts": prompts, "file": "/home/a b/x.txt"}, {})
    assert yaml.safe_load(given.recipe) == {"prompts": prompts, "file": "x.txt"}


def test_a_long_run_is_thinned():
    xs = [float(n) for n in range(100_000)]
    points = thin(xs, xs)
    assert len(points) == 400
    assert points[0] == (124.5, 124.5)  # the mean of 0 to 249


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 2.0, "tokens": 8}]])
def test_a_training_too_short_to_draw(tmp_path: Path, rows: list[dict[str, Any]]):
    parts = [TrainingRow.model_validate(row) for row in rows]
    assert "training" not in sections(page(tmp_path, make_results(), training=parts))


def test_a_training_that_counts_no_tokens_is_drawn_by_steps(tmp_path: Path):
    rows = make_training()
    for row in rows:
        row.pop("tokens", None)
    html = page(tmp_path, make_results(), training=training_rows(rows))
    assert "training" in sections(html)
    assert "steps trained on" in html
    assert "tokens trained on" not in html
    for row in rows:
        row["step"] = 0
    assert "training" in sections(page(tmp_path, make_results(), training=training_rows(rows)))


def test_skipped_steps_and_losses_that_are_no_numbers(tmp_path: Path):
    rows = make_training()
    rows[5] |= {"loss": None, "skipped": True}
    rows.append({"step": 97, "replay_share": 0.3})
    assert "training" in sections(page(tmp_path, make_results(), training=training_rows(rows)))
