"""The errors a user can meet. Each message says where, what, the value, and what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from typing_extensions import Self

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, or that a person should know.

    Attributes:
        where: key, file or tensor.
        what: what is so, with its value.
        advice: what to do; may be empty.
        severity: `error` refuses, `warning` may give a bad result, `note` is good to know.
    """

    where: str
    what: str
    advice: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        """
        >>> str(Fault("train.epochs", "must be at least 1 (got 0)", "raise it"))
        'train.epochs: must be at least 1 (got 0); raise it'
        """
        return f"{self.where}: {self.what}" + (f"; {self.advice}" if self.advice else "")

    def below(self, prefix: str) -> Fault:
        """The same fault, its key seen from farther out: `prefix` ends in a dot or is empty."""
        return replace(self, where=f"{prefix}{self.where}")

    def without(self, prefix: str) -> Fault:
        """The same fault, its key seen from within `prefix`, where it begins with that."""
        return replace(self, where=self.where.removeprefix(prefix))


class ToolkitError(Exception):
    """A fault outside our own code; the command line prints its message and exits `exit_code`.

    Attributes:
        faults: what is wrong, each at its place, where the message lists several or code is to
            look at them; else empty.
    """

    exit_code = 1
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of(cls, fault: Fault) -> Self:
        """An error of one fault."""
        error = cls(str(fault))
        error.faults = (fault,)
        return error

    @classmethod
    def listing(cls, heading: str, faults: Sequence[Fault]) -> Self:
        """An error of a line for each fault below a heading."""
        error = cls("\n  ".join([heading, *map(str, faults)]))
        error.faults = tuple(faults)
        return error


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


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the nearest known one, or nothing.

    The word is of a user's file, in which YAML makes numbers, dates and truth values of some words.

    >>> did_you_mean("fiance", ["finance", "law"])
    '; did you mean finance?'
    >>> did_you_mean("xyz", ["finance", "law"])
    ''
    """
    nearest_words = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean {nearest_words[0]}?" if nearest_words else ""


def sentence_end(word: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or a full stop.

    >>> sentence_end("fiance", ["finance", "law"]), sentence_end("xyz", ["finance", "law"])
    ('; did you mean finance?', '.')
    """
    return did_you_mean(word, known) or "."
