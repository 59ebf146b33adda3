"""Who looked at the test documents: a file that stays when the merge stage is run again.

A test set answers honestly once. Every scoring is put down here before it begins; another choice of
the same search's models needs to be asked for, and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from toolkit.errors import EvaluationError
from toolkit.stage import hash_json, load_json, write_json

LEDGER = "test-ledger.json"
CONFIRMATIONS = "confirmation-ledger.json"


class TestLedger:
    """Scorings of one set of test documents.

    Args:
        path: of the ledger, beside the stages of a run.
        test: hash of the test sets with their settings.
        models: hashes of the general model and the specialist: with the test sets they make the
            study that is to be scored once.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, path: Path, test: str, models: Mapping[str, str]) -> None:
        self._path = path
        self._test = test
        self._study = hash_json(dict(models))

    def _entries(self) -> list[dict[str, Any]]:
        return list(load_json(self._path)["scorings"]) if self._path.is_file() else []

    @property
    def count(self) -> int:
        """How often these test documents were scored, whatever was chosen and trained."""
        return sum(entry["test"] == self._test for entry in self._entries())

    def earlier(self, choice: str) -> dict[str, Any] | None:
        """The last scoring of this study with another choice, None where there was none."""
        others = [
            entry
            for entry in self._entries()
            if (entry["test"], entry["study"]) == (self._test, self._study)
            and entry["choice"] != choice
        ]
        return others[-1] if others else None

    def begin(self, choice: str, name: str, *, again: bool) -> None:
        """Put a scoring down; one of the same choice, such as an interrupted one, counts once.

        Args:
            choice: hash of the chosen merge.
            name: of it, for people.
            again: whether the test documents may be scored once more for this study.

        Raises:
            EvaluationError: they were scored for another choice, and `again` is False.
        """
        entries = self._entries()
        mine = (self._test, self._study, choice)
        if any((e["test"], e["study"], e["choice"]) == mine for e in entries):
            return
        before = self.earlier(choice)
        if before is not None and not again:
            raise EvaluationError(
                f"{self._path}: the test documents were scored for this study on "
                f"{before['date']}, with {before['name']}; now {name} is chosen. Figures of a "
                "second look are no longer free of choice: if you want them all the same, add "
                "--score-test-again (the report says how often it was done). The search is kept."
            )
        entries.append(
            {
                "test": self._test,
                "study": self._study,
                "choice": choice,
                "name": name,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        )
        write_json(self._path, {"scorings": entries})


def note_confirmation(path: Path, documents: str, search: str, name: str) -> int:
    """Put down that a search confirmed merges on the documents that it had set aside.

    Args:
        path: of the ledger, beside the stages of a run.
        documents: hash of the sets that were set aside.
        search: hash of the search's identity; the same search counts once.
        name: of what was chosen, for people.

    Returns:
        How many other searches were confirmed on these documents before.
    """
    entries = list(load_json(path)["confirmations"]) if path.is_file() else []
    mine = (documents, search)
    known = [(entry["documents"], entry["search"]) for entry in entries]
    if mine not in known:
        entries.append(
            {
                "documents": documents,
                "search": search,
                "name": name,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        )
        write_json(path, {"confirmations": entries})
        known.append(mine)
    return sum(entry[0] == documents for entry in known[: known.index(mine)])
