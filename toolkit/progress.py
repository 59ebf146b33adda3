"""What a waiting person sees: lines of text, and bars with the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Names and paths are printed as they are: neither `[b]` nor `:100:` in one means anything. And rich
# breaks lines at 80 columns where there is no terminal; paths in a log stay whole.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
LINE_SECONDS = 30.0
"""Without a terminal (a log, CI) a line is printed this often in place of the bar."""

Advance = Callable[[float, str], None]
"""`advance(amount, note)`: so much more is done; the note is shown behind the bar."""


def say(text: str) -> None:
    console.print(text)


def say_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of as many cells each, the first column to the left, the others to the right.

    Plain lines: a table would cut names to the width of the terminal, or of a log.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        say("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


@contextlib.contextmanager
def silence() -> Iterator[Advance]:
    """What `progress` gives, shown to nobody."""
    yield lambda _amount, _note: None


@contextlib.contextmanager
def progress(title: str, total: float, *, done: float = 0.0) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        title: what is being done.
        total: in whatever unit `advance` counts.
        done: how much was done before, when work continues.
    """
    if console.is_terminal:
        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, completed=int(done), note="")
            yield lambda amount, note: bar.update(task, advance=amount, note=note)
        return
    start_time = last_line_time = time.monotonic()
    done_so_far = done

    def advance(amount: float, note: str) -> None:
        nonlocal last_line_time, done_so_far
        done_so_far += amount
        now = time.monotonic()
        if done_so_far < total and now - last_line_time >= LINE_SECONDS:
            last_line_time = now
            # By what this process did: an earlier one's share took none of its time.
            left = (now - start_time) / max(done_so_far - done, 1e-9) * (total - done_so_far)
            say(f"  {title}: {done_so_far:g}/{total:g}, {left:.0f} s left {note}")

    yield advance
    say(f"  {title}: {done_so_far:g} done in {time.monotonic() - start_time:.0f} s")
