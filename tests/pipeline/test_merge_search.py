"""The merge stage with workers beside it, and the ledger of test scorings, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import project as project
from tests.helpers.projects import recipe, toolkit, write


def test_workers_join_and_a_second_look_at_the_test_documents_is_counted(
    project: Path, make_model: Callable[..., Path]
):
    search: dict[str, Any] = {"num_trials": 6, "sweep": [0.8, 0.4], "merges": ["linear"]}
    write(project, recipe(search={**search, "workers": 2}))
    first = toolkit(project, "merge", "choose", "tiny.yaml")
    assert first.returncode == 0, first.stderr
    results = json.loads((project / "runs/tiny/merge/report.json").read_text())
    assert results["test_scorings"] == 1
    assert len(results["candidates"]) == 6
    assert {row["set"] for row in results["documents"]} >= {"docs", "web"}
    rows = [
        json.loads(line)
        for line in (project / "runs/tiny/merge/scores.jsonl").read_text().splitlines()
    ]
    signed = {row["user_attr"]["worker"] for row in rows if "worker" in row.get("user_attr", {})}
    assert 1 <= len(signed) <= 2

    # How many work on it changes nothing that was found, so nothing is done again.
    write(project, recipe(search=search))
    assert "merge: up to date" in toolkit(project, "merge", "choose", "tiny.yaml").stdout
    late = toolkit(project, "search", "worker", "tiny.yaml")
    assert late.returncode == 0, late.stderr
    assert "there is nothing to search" in late.stdout

    # Other settings, the same choice: no new look. Then as if another one had been chosen before.
    ledger = project / "runs/tiny/test-ledger.json"
    entries = json.loads(ledger.read_text())
    entries["scorings"][0]["choice"] = "another"
    ledger.write_text(json.dumps(entries))
    write(project, recipe(search={**search, "num_trials": 5}))
    refused = toolkit(project, "merge", "choose", "tiny.yaml")
    assert refused.returncode == 1
    assert "--score-test-again" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    again = toolkit(project, "merge", "choose", "tiny.yaml", "--score-test-again")
    assert again.returncode == 0, again.stderr
    results = json.loads((project / "runs/tiny/merge/report.json").read_text())
    assert results["test_scorings"] == 2


def test_a_worker_without_a_search_says_what_to_do(project: Path):
    alone = toolkit(project, "search", "worker", "tiny.yaml", "--wait", "0")
    assert alone.returncode == 1
    assert "run its stage first" in alone.stderr
