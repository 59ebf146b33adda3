"""Who looked at the test documents: a file that stays when the merge stage is run again.

A test set answers honestly once. Every scoring is put down here before it begins; another choice of
the same search's models needs to be asked for, and is counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from toolkit.errors import EvaluationError
from toolkit.load_yaml import read_object
from toolkit.section import check_section
from toolkit.select.results import ResultPart
from toolkit.stage import hash_json, write_json

LEDGER = "test-ledger.json"
CONFIRMATIONS = "confirmation-ledger.json"

LedgerT = TypeVar("LedgerT", bound=BaseModel)


class ScoringEntry(ResultPart):
    """One scoring of test documents."""

    test: str
    """Hash of the test documents, whatever they are scored with: another setting is another look at
    the same."""

    study: str
    """Hash of the two models that were compared."""

    choice: str
    """Hash of the merge that was scored."""

    name: str
    """Name of the merge, for people."""

    date: str


class ScoringEntries(ResultPart):
    """What `test-ledger.json` holds."""

    scorings: tuple[ScoringEntry, ...] = ()


class ConfirmationEntry(ResultPart):
    """One search that confirmed merges on documents that it had set aside."""

    documents: str
    """Hash of the sets that were set aside."""

    search: str
    """Hash of the search's identity."""

    name: str
    """Name of what was chosen, for people."""

    date: str


class ConfirmationEntries(ResultPart):
    """What `confirmation-ledger.json` holds."""

    confirmations: tuple[ConfirmationEntry, ...] = ()


class TestLedger:
    """Scorings of one set of test documents.

    Args:
        path: path of the ledger, beside the stages of a run.
        test: hash of the test documents, see `ScoringEntry`.
        models: hashes of the general model and the specialist: with the test sets they make the
            study that is to be scored once.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, path: Path, test: str, models: Mapping[str, str]) -> None:
        self._path = path
        self._test = test
        self._study = hash_json(dict(models))

    def _entries(self) -> tuple[ScoringEntry, ...]:
        return _read_ledger(self._path, ScoringEntries).scorings

    @property
    def count(self) -> int:
        """How often these test documents were scored, whatever was chosen and trained."""
        return sum(entry.test == self._test for entry in self._entries())

    def earlier(self, choice: str) -> ScoringEntry | None:
        """The last scoring of this study with another choice, None where there was none."""
        others = [
            entry
            for entry in self._entries()
            if (entry.test, entry.study) == (self._test, self._study) and entry.choice != choice
        ]
        return others[-1] if others else None

    def begin(self, choice: str, name: str, *, again: bool) -> None:
        """Put a scoring down; one of the same choice, such as an interrupted one, counts once.

        Args:
            choice: hash of the chosen merge.
            name: name of the merge, for people.
            again: whether the test documents may be scored once more for this study.

        Raises:
            EvaluationError: they were scored for another choice, and `again` is False.
        """
        with _alone(self._path):
            self._begin(choice, name, again=again)

    def _begin(self, choice: str, name: str, *, again: bool) -> None:
        entries = self._entries()
        this_scoring = (self._test, self._study, choice)
        if any((entry.test, entry.study, entry.choice) == this_scoring for entry in entries):
            return
        earlier_scoring = self.earlier(choice)
        if earlier_scoring is not None and not again:
            raise EvaluationError(
                f"{self._path}: the test documents were scored for this study on "
                f"{earlier_scoring.date}, with {earlier_scoring.name}; now {name} is chosen. "
                "Figures of a second look are no longer free of choice: if you want them all the "
                "same, add --score-test-again (the report says how often it was done). The search "
                "is kept."
            )
        entry = ScoringEntry(
            test=self._test, study=self._study, choice=choice, name=name, date=_now()
        )
        # Written before anything is scored: a scoring that was interrupted may have been seen too.
        _write_ledger(self._path, ScoringEntries(scorings=(*entries, entry)))


def note_confirmation(path: Path, documents: str, search: str, name: str) -> int:
    """Put down that a search confirmed merges on the documents that it had set aside.

    Args:
        path: path of the ledger, beside the stages of a run.
        documents: hash of the sets that were set aside.
        search: hash of the search's identity; the same search counts once.
        name: name of what was chosen, for people.

    Returns:
        How many other searches were confirmed on these documents before.
    """
    with _alone(path):
        entries = _read_ledger(path, ConfirmationEntries).confirmations
        this_search = (documents, search)
        searches = [(entry.documents, entry.search) for entry in entries]
        if this_search not in searches:
            entry = ConfirmationEntry(documents=documents, search=search, name=name, date=_now())
            _write_ledger(path, ConfirmationEntries(confirmations=(*entries, entry)))
            searches.append(this_search)
    # Only searches before this one count against it, so that a stage that is run again says the
    # same.
    return sum(other == documents for other, _ in searches[: searches.index(this_search)])


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let no other process change a ledger between its being read and written: stages of one run
    share it, and an entry that is lost is a look at the test documents that nobody knows of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The folder is locked, as the file itself is replaced when it is written.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        # Some file systems know no locks; alone on them, a process needs none.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which lets go


def _read_ledger(path: Path, kind: type[LedgerT]) -> LedgerT:
    """What a ledger holds; one without entries where there is no file.

    Raises:
        EvaluationError: the file is damaged; what it counted cannot be made up.
    """
    if not path.is_file():
        return kind()
    # A damaged ledger is not begun anew: that would forget that test documents were used.
    advice = "restore it from a copy, or remove it, and forget how often documents were used"
    ledger, faults = check_section(kind, read_object(path, EvaluationError, advice))
    if ledger is None:
        raise EvaluationError(f"{path}: {faults[0]}; {advice}.")
    return ledger


def _write_ledger(path: Path, ledger: BaseModel) -> None:
    write_json(path, ledger.model_dump(mode="json"))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
