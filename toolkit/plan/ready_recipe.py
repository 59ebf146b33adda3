"""A ready recipe: the old one with a plan's settings, each with a comment that says why."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ConfigError
from toolkit.pipeline.run import Run
from toolkit.plan.results import PlanResults
from toolkit.plan.settings import Setting
from toolkit.recipe.load import load_recipe
from toolkit.stage import write_atomically

_WIDTH = 100
_ONE_LINE_KEYS = 3
_MAP, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


def check_write(path: Path) -> None:
    """Refuse a place for a recipe, before anything is measured.

    Raises:
        ConfigError: there is something, or its name is not that of a recipe.
    """
    if path.exists():
        raise ConfigError(f"--write {path}: is there already; give another name or remove it.")
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--write {path}: must end in .yaml.")


def write_recipe(run: Run, plan: PlanResults, path: Path) -> None:
    """Write a ready recipe with the plan's settings.

    Raises:
        ConfigError: there is something at `path`, or what would be written is no valid recipe.
    """
    check_write(path)
    if plan.is_it_the_right_tool is None:
        raise ConfigError(
            f"--write {path}: {run.name} names a finished specialist, so there are no settings of "
            "training to write."
        )
    assert run.path is not None  # noqa: S101  (a run that was opened by name has one)
    opening_lines = [
        f"Made by `toolkit plan {run.name}` from {run.path.name}; settings with a reason above "
        "them follow from what was measured there.",
        f"Verdict: {plan.is_it_the_right_tool.tool}. Fine-tuning: {plan.fine_tuning}.",
    ]
    recipe_values = run.recipe.model_dump(mode="json", exclude_unset=True, by_alias=True)
    text = recipe_text(recipe_values, plan.settings, opening_lines)
    write_checked(text, path, load_recipe)


def write_checked(text: str, path: Path, read: Callable[[Path], object]) -> None:
    """Write a recipe once it was read under another name, so that what stands at `path` is a valid
    one or nothing."""
    trial_file = path.with_name(f".{path.stem}.trial.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial_file.write_text(text, encoding="utf-8")
        read(trial_file)
    finally:
        trial_file.unlink(missing_ok=True)
    with write_atomically(path) as file:
        file.write(text)


def recipe_text(values: dict[str, Any], settings: Sequence[Setting], opening: Sequence[str]) -> str:
    """YAML of a recipe under other settings.

    Args:
        values: the recipe as it was read from its file.
        settings: values to set; those that agree with the recipe get their comment too.
        opening: comment lines for the top of the file.

    >>> print(recipe_text({"train": {"epochs": 1}}, [Setting("train.epochs", 2, 1, "more")], []))
    train:
      # more
      epochs: 2
    <BLANKLINE>
    """
    changed_values = copy.deepcopy(values)
    reasons_by_key: dict[str, str] = {}
    for setting in settings:
        *sections, last_key = setting.key.split(".")
        section = changed_values
        for name in sections:
            # A section that the recipe left to its defaults is not there yet.
            section = section.setdefault(name, {})
        section[last_key] = setting.value
        reasons_by_key[setting.key] = setting.why
    text = yaml.dump(
        _in_lines(changed_values, "", reasons_by_key),
        Dumper=_RecipeDumper,
        sort_keys=False,
        allow_unicode=True,
        width=_WIDTH,
    )
    lines = [line for sentence in opening for line in _comment_lines(sentence, "")]
    # YAML has no place for comments, so the keys are found again by their indentation.
    open_keys: list[tuple[int, str]] = []
    for line in text.splitlines():
        body = line.lstrip()
        indent = len(line) - len(body)
        key, colon, _ = body.partition(":")
        if colon and not body.startswith(("- ", "#")):
            open_keys = [
                # Keys that are indented as far or farther ended above this line.
                *(item for item in open_keys if item[0] < indent),
                (indent, key.strip("'\"")),
            ]
            # Taken out, so that a line of prose further down cannot get the comment again.
            why = reasons_by_key.pop(".".join(name for _, name in open_keys), None)
            if why is not None:
                lines += _comment_lines(why, " " * indent)
        lines.append(line)
    return "\n".join(lines) + "\n"


class _OneLine(dict[str, Any]):
    """A mapping that is written in one line."""


class _RecipeDumper(yaml.SafeDumper):
    """Writes lists of plain values, and mappings that are marked, in one line."""


_RecipeDumper.add_representer(
    _OneLine, lambda dumper, values: dumper.represent_mapping(_MAP, values, flow_style=True)
)
_RecipeDumper.add_representer(
    list,
    lambda dumper, values: dumper.represent_sequence(
        _SEQUENCE, values, flow_style=not any(isinstance(v, (dict, list)) for v in values)
    ),
)


def _in_lines(value: Any, key: str, reasons: Mapping[str, str]) -> Any:
    """The value with its small mappings marked, but for those that a comment stands within."""
    if not isinstance(value, dict):
        return value
    inner = {
        name: _in_lines(part, f"{key}.{name}" if key else str(name), reasons)
        for name, part in value.items()
    }
    is_plain = not any(isinstance(part, (dict, list)) for part in inner.values())
    has_comment = any(reason.startswith(f"{key}.") for reason in reasons)
    is_small = bool(key) and len(inner) <= _ONE_LINE_KEYS
    return _OneLine(inner) if is_plain and is_small and not has_comment else inner


def _comment_lines(sentence: str, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(sentence, _WIDTH, initial_indent=mark, subsequent_indent=mark)
