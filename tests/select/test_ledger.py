"""Who looked at the test documents."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolkit.errors import EvaluationError
from toolkit.select.ledger import TestLedger, note_confirmation

MODELS = {"general": "g", "specialist": "s"}


def test_one_choice_is_scored_once_and_another_must_be_asked_for(tmp_path: Path):
    path = tmp_path / "test-ledger.json"
    ledger = TestLedger(path, "docs", MODELS)
    ledger.begin("k1", "linear alpha=0.8", again=False)
    ledger.begin("k1", "linear alpha=0.8", again=False)  # interrupted, and continued
    assert ledger.count == 1
    again = TestLedger(path, "docs", MODELS)  # the stage ran anew with other settings
    with pytest.raises(EvaluationError, match=r"with linear alpha=0\.8; now slerp t=0.5") as caught:
        again.begin("k2", "slerp t=0.5", again=False)
    assert "--score-test-again" in str(caught.value)
    assert again.count == 1
    again.begin("k2", "slerp t=0.5", again=True)
    assert again.count == 2


def test_other_models_are_another_study_and_other_documents_another_test(tmp_path: Path):
    path = tmp_path / "test-ledger.json"
    TestLedger(path, "docs", MODELS).begin("k1", "a", again=False)
    trained_again = TestLedger(path, "docs", {**MODELS, "specialist": "s2"})
    trained_again.begin("k2", "b", again=False)
    assert trained_again.count == 2  # the same documents all the same
    other = TestLedger(path, "others", MODELS)
    other.begin("k3", "c", again=False)
    assert other.count == 1


def test_no_entry_is_lost_where_stages_of_one_run_end_at_once(tmp_path: Path):
    path = tmp_path / "test-ledger.json"

    def begin(number: int) -> None:
        models = {"general": "g", "specialist": f"s{number}"}
        TestLedger(path, "docs", models).begin(f"k{number}", "a", again=False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(40)))
    assert TestLedger(path, "docs", MODELS).count == 40


def test_another_search_on_the_same_documents_set_aside_is_counted(tmp_path: Path):
    path = tmp_path / "confirmation-ledger.json"
    assert note_confirmation(path, "docs", "one", "ties") == 0
    assert note_confirmation(path, "docs", "one", "ties") == 0  # interrupted, and continued
    assert note_confirmation(path, "docs", "two", "slerp") == 1
    assert note_confirmation(path, "others", "two", "slerp") == 0
    assert note_confirmation(path, "docs", "three", "general") == 2
    assert note_confirmation(path, "docs", "two", "slerp") == 1  # as when it was done


@pytest.mark.parametrize("text", ["{", "[]", '{"scorings": [{"test": "docs"}]}', '{"times": 3}'])
def test_a_damaged_ledger_is_one_line_and_counts_nothing(tmp_path: Path, text: str):
    path = tmp_path / "test-ledger.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"test-ledger\.json: .*restore it") as caught:
        _ = TestLedger(path, "docs", MODELS).count
    assert "\n" not in str(caught.value)
    assert path.read_text() == text
