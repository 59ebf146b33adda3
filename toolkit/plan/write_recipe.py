"""A ready recipe: the old one with other settings, each with a comment that says why."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from toolkit.plan.settings import Setting

_WIDTH = 100


def recipe_text(values: dict[str, Any], settings: Sequence[Setting], opening: Sequence[str]) -> str:
    """YAML of a recipe under other settings.

    Args:
        values: the recipe as it was read from its file.
        settings: what to set; those that agree with it get their comment too.
        opening: comment lines for its top.

    >>> print(recipe_text({"train": {"epochs": 1}}, [Setting("train.epochs", 2, 1, "more")], []))
    train:
      # more
      epochs: 2
    <BLANKLINE>
    """
    changed = copy.deepcopy(values)
    reasons: dict[str, str] = {}
    for setting in settings:
        _set(changed, setting.key.split("."), setting.value)
        reasons[setting.key] = setting.why
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, width=_WIDTH)
    lines = [line for words in opening for line in _comment(words, "")]
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        body = line.lstrip()
        indent = len(line) - len(body)
        key, colon, _ = body.partition(":")
        if colon and not body.startswith(("- ", "#")):
            path = [*(item for item in path if item[0] < indent), (indent, key.strip("'\""))]
            why = reasons.pop(".".join(name for _, name in path), None)
            if why is not None:
                lines += _comment(why, " " * indent)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _comment(words: str, indent: str) -> list[str]:
    return textwrap.wrap(
        words, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
