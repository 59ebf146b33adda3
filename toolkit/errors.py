"""The errors a user can meet. Each message says where, what, the value, and what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class ToolkitError(Exception):
    """A fault outside our own code; the command line prints its message and exits `exit_code`."""

    exit_code = 1


class ConfigError(ToolkitError):
    """A recipe, merge configuration or flag that cannot be used."""

    exit_code = 2


class DataError(ToolkitError):
    """Documents or artifacts that are missing, corrupt or empty."""


class CheckpointError(ToolkitError):
    """A model folder that cannot be read or written."""


class MergeError(ToolkitError):
    """Models that cannot be merged as asked."""


class EvaluationError(ToolkitError):
    """A model or an item set that cannot be scored."""


class PublishError(ToolkitError):
    """A bundle that may not or cannot leave this machine."""


_SAID: set[str] = set()


def warn(text: str) -> None:
    """Say on standard error, once per process, what is probably not meant, and go on."""
    _say_once(f"warning: {text}")


def note(text: str) -> None:
    """Say on standard error, once per process, what is worth knowing."""
    _say_once(f"note: {text}")


def _say_once(line: str) -> None:
    if line not in _SAID:
        _SAID.add(line)
        print(line, file=sys.stderr)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the nearest known one, or nothing.

    >>> did_you_mean("fiance", ["finance", "law"])
    '; did you mean finance?'
    >>> did_you_mean("xyz", ["finance", "law"])
    ''
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def sentence_end(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or a full stop.

    >>> sentence_end("fiance", ["finance", "law"]), sentence_end("xyz", ["finance", "law"])
    ('; did you mean finance?', '.')
    """
    return did_you_mean(word, known) or "."
