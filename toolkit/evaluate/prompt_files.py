"""Prompts of the user's own: JSONL files, a prompt per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError, ToolkitError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.instructions import parse_check
from toolkit.evaluate.prompts import RetentionPrompt, choose_half, take_turns
from toolkit.json_lines import parse_row
from toolkit.stage import hash_json

PromptSet = Literal["retention", "behavior"]
"""A section of `evaluate` with `files` of prompts."""


def read_prompt_files(
    evaluate: EvaluateSection, name: PromptSet, split: SplitName
) -> list[RetentionPrompt]:
    """Prompts of one split out of files, all kinds in turn; a prompt that stands twice counts once.

    A line is `{"prompt": text}`, and may have a `kind`, of which either split gets half, a `group`,
    which stays in one split (prompts over the same text), and a `check` of its answer.

    Args:
        evaluate: names the JSONL files.
        name: whose prompts are wanted.
        split: `validation` or `test`.

    Raises:
        EvaluationError: a file cannot be read, or a line of it holds no prompt.
    """
    files_by_set: dict[PromptSet, tuple[str, ...]] = {
        "retention": evaluate.retention.files,
        "behavior": evaluate.behavior.files if evaluate.behavior is not None else (),
    }
    own_kinds = _read_kinds(files_by_set, [name])
    halved_kinds = own_kinds
    # Where the two have files in common, both are halved together, or a prompt would be of
    # validation for one and of test for the other.
    retention_files, behavior_files = map(set, files_by_set.values())
    if retention_files and behavior_files and retention_files != behavior_files:
        halved_kinds = _read_kinds(files_by_set, list(files_by_set))
    texts = {prompt.text for kind in halved_kinds for prompt in choose_half(kind, split)}
    return take_turns([[prompt for prompt in kind if prompt.text in texts] for kind in own_kinds])


def _read_kinds(
    files_by_set: Mapping[PromptSet, Sequence[str]], names: Sequence[PromptSet]
) -> list[list[RetentionPrompt]]:
    """Prompts of files by kind, each in an order that the order of lines does not decide."""
    by_text: dict[str, RetentionPrompt] = {}
    for name in names:
        for file_name in files_by_set[name]:
            for prompt in _read_file(Path(file_name), name):
                by_text.setdefault(prompt.text, prompt)
    kinds: dict[str, list[RetentionPrompt]] = {}
    for prompt in sorted(by_text.values(), key=lambda p: (hash_json([p.kind, p.group]), p.text)):
        kinds.setdefault(prompt.kind, []).append(prompt)
    return [prompts for _, prompts in sorted(kinds.items())]


def _read_file(path: Path, name: PromptSet) -> list[RetentionPrompt]:
    try:
        # Some editors put a byte order mark in front. Not splitlines: strings of JSON may hold
        # U+2028 and its like as they are.
        file_lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"evaluate.{name}.files: {path} cannot be read ({error}); give a JSONL file."
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
