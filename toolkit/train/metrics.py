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

    Attributes:
        first_loss, last_loss: of the steps in the log; None where there are none.
    """

    def __init__(self, path: Path, *, keep_steps: int = 0) -> None:
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        kept = []
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                    except ValueError:  # the last line of a killed run may be cut short
                        break
                    if row["step"] <= keep_steps:
                        self._see(row)
                        kept.append(line)
        with write_atomically(path) as file:
            file.writelines(kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **row: Any) -> None:
        self._see(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _see(self, row: dict[str, Any]) -> None:
        if "loss" in row:
            self.last_loss = row["loss"]
            if self.first_loss is None:
                self.first_loss = row["loss"]

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


class NoLog:
    """What the processes write that are not the first: nothing."""

    first_loss = last_loss = None

    def write(self, **row: Any) -> None:
        pass

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not say."""
    try:
        import os

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
