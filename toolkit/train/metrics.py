"""The metrics log: one JSON object a step, appended as training goes."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from toolkit.manifest import write_atomically


class MetricsLog:
    """Appends rows to a `.jsonl` file; on resume, rows after the resumed step are dropped first.

    Args:
        path: the file.
        keep_steps: rows with a `step` up to this one stay.
    """

    def __init__(self, path: Path, *, keep_steps: int = 0) -> None:
        self._rows = [row for row in _read(path) if row["step"] <= keep_steps]
        with write_atomically(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in self._rows)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **row: float) -> None:
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self._rows]

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a killed run may be cut short
            break
    return rows
