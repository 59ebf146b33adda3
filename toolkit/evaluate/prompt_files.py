"""Prompts of the user's own: JSONL files, a prompt per line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError, ToolkitError
from toolkit.evaluate.instructions import parse_check
from toolkit.evaluate.prompts import RetentionPrompt, choose_half, take_turns
from toolkit.json_lines import parse_row
from toolkit.stage import hash_json


def read_prompt_files(files: Sequence[str], split: SplitName) -> list[RetentionPrompt]:
    """Prompts of one split out of files, all kinds in turn; a prompt that stands twice counts once.

    A line is `{"prompt": text}`, and may have a `kind`, of which either split gets half, a `group`,
    which stays in one split (prompts over the same text), and a `check` of its answer.

    Args:
        files: JSONL.
        split: `validation` or `test`.

    Raises:
        EvaluationError: a file cannot be read, or a line of it holds no prompt.
    """
    by_text: dict[str, RetentionPrompt] = {}
    for file_name in files:
        for prompt in _read_file(Path(file_name)):
            by_text.setdefault(prompt.text, prompt)
    kinds: dict[str, list[RetentionPrompt]] = {}
    # By hash, so that the order of lines decides nothing.
    for prompt in sorted(by_text.values(), key=lambda p: (hash_json([p.kind, p.group]), p.text)):
        kinds.setdefault(prompt.kind, []).append(prompt)
    return take_turns([choose_half(prompts, split) for _, prompts in sorted(kinds.items())])


def _read_file(path: Path) -> list[RetentionPrompt]:
    try:
        # Some editors put a byte order mark in front. Not splitlines: strings of JSON may hold
        # U+2028 and its like as they are.
        file_lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"evaluate.retention.files: {path} cannot be read ({error}); give a JSONL file."
        ) from error
    return [
        _read_line(line, f"{path}:{number}")
        for number, line in enumerate(file_lines, start=1)
        if line.strip()
    ]


def _read_line(line: str, where: str) -> RetentionPrompt:
    try:
        prompt_row = parse_row(line, where)
    except ToolkitError:
        prompt_row = {}
    prompt_text = prompt_row.get("prompt")
    if not isinstance(prompt_text, str) or not prompt_text.strip():
        raise EvaluationError(
            f'{where}: holds no prompt ({line.strip()[:40]!r}); a line is {{"prompt": "…"}}.'
        )
    check = None if prompt_row.get("check") is None else parse_check(prompt_row["check"], where)
    prompt_kind, prompt_group = (str(prompt_row.get(key) or "") for key in ("kind", "group"))
    return RetentionPrompt(prompt_text, prompt_kind, prompt_group or prompt_text, check)
