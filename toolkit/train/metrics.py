"""The metrics log: one JSON object a step, appended as training goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from toolkit.errors import ToolkitError
from toolkit.json_lines import parse_row, split_lines

_PIECE_BYTES = 1 << 16

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends rows to a `.jsonl` file; on resume, rows after the resumed step are dropped first.

    Args:
        path: the file; None in processes that write nothing.
        keep_steps: rows with a `step` up to this one stay.

    Attributes:
        first_loss, last_loss: losses of the first and last step in the log; None where there are
            none, or where that step was refused.
    """

    def __init__(self, path: Path | None, *, keep_steps: int = 0) -> None:
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self._file: IO[str] | None = None
        if path is None:
            return
        path.touch()
        with path.open("r+b") as file:
            num_bytes, last_row = _rows_to_keep(file, keep_steps)
            file.truncate(num_bytes)
            file.seek(0)
            rows = (_parse_line(line) or {} for line in file)
            first_row = next((row for row in rows if "loss" in row), {})
        # A resumed run goes on from the losses that its log begins and ends with.
        for row in (first_row, last_row):
            self._note_loss(row)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **row: Any) -> None:
        """Append a row and hand it to the system, so that a killed run has it."""
        self._note_loss(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def _note_loss(self, row: dict[str, Any]) -> None:
        if "loss" in row:
            self.last_loss = row["loss"]
            if self.first_loss is None:
                self.first_loss = row["loss"]

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()


def _rows_to_keep(file: IO[bytes], keep_steps: int) -> tuple[int, dict[str, Any]]:
    """Bytes of the rows that stay, and the last of them that has a loss.

    Found from the end: a long run has millions of rows, of which a resumed one drops a few.
    """
    num_bytes, is_dropping = file.seek(0, os.SEEK_END), True
    for line in _lines_backwards(file):
        row = _parse_line(line)
        if is_dropping and (row is None or row["step"] > keep_steps):
            num_bytes -= len(line)
            continue
        is_dropping = False
        if row is not None and "loss" in row:
            return num_bytes, row
    return num_bytes, {}


def _lines_backwards(file: IO[bytes]) -> Iterator[bytes]:
    end, unfinished_line = file.seek(0, os.SEEK_END), b""
    while end > 0:
        start = max(0, end - _PIECE_BYTES)
        file.seek(start)
        # The first line of a piece may begin in the piece before it; it waits until that is read.
        lines = (file.read(end - start) + unfinished_line).splitlines(keepends=True)
        unfinished_line = lines.pop(0) if start else b""
        yield from reversed(lines)
        end = start


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """None where a killed run's last line is cut short."""
    try:
        return parse_row(line, "metrics") if line.endswith(b"\n") else None
    except ToolkitError:
        return None


@dataclass(frozen=True)
class CurvePoint:
    """One step of a training run; what was not measured at it is None.

    Attributes:
        step: optimizer steps done.
        tokens: targets learned from up to here, all steps together.
        loss: nats per token before the step's update; None where the update was refused.
        learning_rate: rate of the step.
        domain_bits_per_byte, general_bits_per_byte: figures of the forgetting monitor.
    """

    step: int
    tokens: int
    loss: float | None = None
    learning_rate: float | None = None
    domain_bits_per_byte: float | None = None
    general_bits_per_byte: float | None = None


def read_curve(path: Path) -> list[CurvePoint]:
    """The curve of a run from its `metrics.jsonl`, one point per step, in their order.

    A last line that was cut short is left out, so a run can be read while it goes on.

    Raises:
        ToolkitError: there is no such file.
    """
    try:
        lines = split_lines(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ToolkitError(f"{path}: cannot be read ({error}); train first.") from error
    measured_fields = {field.name for field in fields(CurvePoint)} - {"step", "tokens"}
    points: dict[int, CurvePoint] = {}
    tokens_so_far = 0
    for line in lines:
        try:
            row = parse_row(line, str(path))
        # The run that writes the file may be amid this line.
        except ToolkitError:
            break
        if not isinstance(row.get("step"), int):
            break
        tokens_so_far += row.get("tokens", 0)
        # A step has a row of its own, and another where the monitor looked after it.
        point = points.get(row["step"], CurvePoint(row["step"], tokens_so_far))
        measured = {name: row[name] for name in measured_fields & set(row)}
        points[row["step"]] = replace(point, tokens=tokens_so_far, **measured)
    return list(points.values())


_BARS = "▁▂▃▄▅▆▇█"


def curve_line(values: Sequence[float], width: int = 60) -> str:
    """Numbers as one line of text, each sign the mean of its stretch; lowest to highest.

    >>> curve_line([3.0, 2.0, 1.0, 1.0], width=2)
    '█▁'
    """
    if not values:
        return ""
    width = min(width, len(values))
    stretch_edges = [round(number * len(values) / width) for number in range(width + 1)]
    # By edges, not by a step: stretches differ by one value at most, and none is left over.
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(stretch_edges)]
    lowest_mean, mean_span = min(means), max(means) - min(means)
    return "".join(
        _BARS[round((mean - lowest_mean) / mean_span * (len(_BARS) - 1)) if mean_span else 0]
        for mean in means
    )


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not say."""
    try:
        num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return num_pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
