"""Lines and bars say names and paths as they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from toolkit import progress as module
from toolkit.progress import console, progress, say

NAMES = "train.jsonl:100: [b]bad[/b] :smile:"


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]):
    say(NAMES)
    table = Table("column")
    table.add_row(NAMES)
    console.print(table)
    line, *rest = capsys.readouterr().out.splitlines()
    assert line == NAMES
    assert any(NAMES in row for row in rest)


def test_a_bar_is_titled_as_it_is(monkeypatch: pytest.MonkeyPatch):
    terminal = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=terminal, width=200, force_terminal=True))
    with progress(NAMES, 1) as advance:
        advance(1, "[i]")
    assert NAMES in terminal.getvalue()
    assert "[i]" in terminal.getvalue()
