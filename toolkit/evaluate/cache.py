"""Every score is kept: by model content, item set and settings, one line for a block of items.

Processes append whole lines to one file under a lock, so that none is torn or lost. A line holds
its own sum; one that does not fit it, such as one that a killed process left half-written, is
passed over with a word, and its items are scored again.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import EvaluationError, ToolkitError
from toolkit.evaluate.sets import EvaluationSet
from toolkit.json_lines import parse_row, sealed, unsealed
from toolkit.progress import say
from toolkit.stage import hash_json

_ARITHMETIC = 2
"""Of this version: scores that were rounded in other places are not mixed with its own, as models
are compared by small differences. 2: log softmax in one pass."""


def candidate_hash(parents: Mapping[str, str], config: Any, seed: int) -> str:
    """Name of a merge that was never written to disk: what it would be made of.

    Args:
        parents: content hashes of the models it merges, by the names `config` uses.
        config: the merge configuration as plain values.
        seed: of random methods.

    >>> one = candidate_hash({"general": "a", "specialist": "b"}, {"t": 0.5}, 0)
    >>> one == candidate_hash({"specialist": "b", "general": "a"}, {"t": 0.5}, 0)
    True
    >>> one == candidate_hash({"general": "a", "specialist": "b"}, {"t": 0.6}, 0)
    False
    """
    return hash_json({"parents": dict(parents), "config": config, "seed": seed})


class ScoreCache:
    """Scores in one append-only file, shared by processes.

    Args:
        path: of the file; it and its folder are made when first needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], dict[int, float]] = {}
        self._read_bytes = 0
        self._file_number: int | None = None

    def known(self, model: str, items: EvaluationSet) -> dict[int, float]:
        """Losses that are there already, by index of the item."""
        self._read()
        return dict(self._known.get((model, _set_key(items)), {}))

    def add(
        self, model: str, items: EvaluationSet, rows: Sequence[int], losses: Sequence[float]
    ) -> None:
        """Keep the losses of some items.

        Args:
            model: content hash of the model.
            items: the set.
            rows: indices of the items.
            losses: of each.

        Raises:
            EvaluationError: a loss is not a finite number.
        """
        if bad_loss := next((v for v in losses if not math.isfinite(v)), None):
            raise EvaluationError(
                f"{items.name}: a loss is {bad_loss}; the model's weights are damaged, or its "
                "merge is."
            )
        score_row = {
            "model": model,
            "set": _set_key(items),
            # For people who read the file: two sets of one name are told apart by their key.
            "name": items.name,
            "rows": [int(score_row) for score_row in rows],
            "losses": [float(loss) for loss in losses],
        }
        row_bytes = json.dumps(sealed(score_row), separators=(",", ":")).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # a+ appends at the end whatever another process has written since it was opened.
        with self._path.open("ab+") as file:
            # Locked before the end is looked at, as another process may be appending. Closing the
            # file lets go.
            fcntl.flock(file, fcntl.LOCK_EX)
            # A line that a killed process left unfinished must not swallow this one.
            if file.seek(0, os.SEEK_END) and not _ends_a_line(file):
                file.write(b"\n")
            file.write(row_bytes + b"\n")
            file.flush()

    def score(
        self,
        model: Any,
        model_hash: str,
        items: EvaluationSet,
        rows: Sequence[int] | None = None,
        *,
        together: Sequence[EvaluationSet] = (),
    ) -> list[float]:
        """Losses of items, computed where they are not known yet.

        Args:
            model: the loaded model.
            model_hash: of its content; for a merge in memory, `candidate_hash`.
            items: the set.
            rows: indices of the items wanted; all by default.
            together: sets that the same pass scores (`score_together`); theirs are kept as well.

        Returns:
            Losses in the order of `rows`.

        Raises:
            EvaluationError: a loss is not finite.
        """
        asked_rows = list(range(len(items))) if rows is None else list(rows)
        losses_by_row = self.known(model_hash, items)
        # Each item once, even where a sample asks for it several times.
        missing = [row for row in dict.fromkeys(asked_rows) if row not in losses_by_row]
        if missing:
            # Its own losses are the set's, whatever another set of its name is.
            by_name = {other.name: other for other in (*together, items)}
            # A pass that gives several sets is kept for all of them, or each would pay for it
            # again.
            if items.score_together is not None:
                losses_by_set = items.score_together(model, missing)
            else:
                losses_by_set = {items.name: items.score(model, missing)}
            for set_name, losses in losses_by_set.items():
                if set_name in by_name:
                    self.add(model_hash, by_name[set_name], missing, losses)
            losses_by_row.update(zip(missing, losses_by_set[items.name], strict=True))
        return [losses_by_row[row] for row in asked_rows]

    def _read(self) -> None:
        """Take in what was appended since the last time, by this process or another."""
        try:
            cache_file = self._path.open("rb")
        except FileNotFoundError:
            self._known, self._read_bytes = {}, 0
            return
        with cache_file:
            file_status = os.fstat(cache_file.fileno())
            if file_status.st_ino != self._file_number or file_status.st_size < self._read_bytes:
                self._known, self._read_bytes = {}, 0  # another file took its place
            self._file_number = file_status.st_ino
            cache_file.seek(self._read_bytes)
            # A line that is being written has no end yet, and is read the next time.
            whole_lines, line_end, _ = cache_file.read().rpartition(b"\n")
        self._read_bytes += len(whole_lines) + len(line_end)
        num_damaged = 0
        for row_line in whole_lines.split(b"\n"):
            if (row_entry := _entry(row_line)) is not None:
                score_key, losses = row_entry
                self._known.setdefault(score_key, {}).update(losses)
            elif row_line:
                num_damaged += 1
        if num_damaged:
            say(
                f"  {self._path}: {num_damaged} damaged "
                f"line{'s are' if num_damaged > 1 else ' is'} passed over; what stood there is "
                "scored again"
            )


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _entry(line: bytes) -> tuple[tuple[str, str], dict[int, float]] | None:
    """What a line says, or None where it is damaged: no score is what is no finite number."""
    try:
        score_row = unsealed(parse_row(line, "scores"))
        if score_row is None:
            return None
        losses_by_item = dict(zip(score_row["rows"], map(float, score_row["losses"]), strict=True))
        if not all(math.isfinite(loss) for loss in losses_by_item.values()):
            return None
        return (str(score_row["model"]), str(score_row["set"])), losses_by_item
    except (ToolkitError, ValueError, KeyError, TypeError):
        return None


def _set_key(items: EvaluationSet) -> str:
    return hash_json([items.content_hash, items.settings_hash, _ARITHMETIC])
