"""What the merge stage says of its sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.helpers.fakes import made_up_set
from toolkit.pipeline.merge_stage import _set_results


def test_a_set_of_one_split_only_stands_in_the_results_too():
    validation = [made_up_set("filings", "domain", 10), made_up_set("news", "general", 10)]
    test = [made_up_set("wiki", "general", 6), made_up_set("filings", "domain", 8)]
    plan = SimpleNamespace(objective=SimpleNamespace(tolerances={"news": 0.01}))
    search: Any = SimpleNamespace(validation=validation, test=test, plan=plan)
    rows = [
        (row.name, row.role, row.items_validation, row.items_test, row.tolerance)
        for row in _set_results(search)
    ]
    assert rows == [
        ("filings", "domain", 10, 8, None),
        ("news", "general", 10, 0, 0.01),
        ("wiki", "general", 0, 6, None),
    ]
