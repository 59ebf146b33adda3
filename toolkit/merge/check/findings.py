"""What a check found: where, what, the values, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PATTERNS = 3
"""Kinds of tensors named in one line; the others are counted."""


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know before the merge.

    Attributes:
        severity: `error`, the merge is refused or its result cannot work; `warning`, it runs and
            the result may be bad; `note`, it is as it is and good to know.
        where: model, tensor or key of the configuration.
        what: is so, with its values.
        advice: what to do.
        covers: tensors or stacks that it speaks of: what the plan would refuse about them first is
            said by it already.
    """

    severity: Severity
    where: str
    what: str
    advice: str = ""
    covers: frozenset[str] = frozenset()

    @property
    def line(self) -> str:
        text = f"{self.where}: {self.what}{'; ' if self.advice else ''}{self.advice}"
        return text if text.endswith("?") else f"{text}."


def from_message(message: str, severity: Severity = "error") -> Finding:
    """A finding from an error's text, `where: what. what to do.`

    >>> from_message("density: must be from 0 to 1 (got 2).").where
    'density'
    """
    where, _, what = message.partition(": ")
    if not what:
        where, what = "merge", message
    return Finding(severity, where, what.removesuffix("."))


def summarize_names(names: Collection[str], what: str = "tensor") -> str:
    """Many names in few words: layers are folded into one kind.

    >>> summarize_names([f"model.layers.{i}.mlp.bias" for i in range(24)])
    '24 tensors like model.layers.*.mlp.bias'
    >>> summarize_names(["lm_head.weight"])
    'lm_head.weight'
    >>> summarize_names([f"{kind}.{i}.w" for kind in "abcd" for i in range(2)])
    '8 tensors like a.*.w (2), b.*.w (2), c.*.w (2) and 1 more kind'
    """
    kinds = Counter(_NUMBER.sub("*", name) for name in names)
    if len(names) == 1:
        return next(iter(names))
    counts = len(kinds) > 1
    shown = [f"{k} ({n})" if counts else k for k, n in list(kinds.items())[:_PATTERNS]]
    more = len(kinds) - len(shown)
    tail = f" and {more} more kind{'s' if more > 1 else ''}" if more else ""
    return f"{len(names)} {what}s like {', '.join(shown)}{tail}"


def kind_of(name: str) -> str:
    """A tensor's name without the number of its layer.

    >>> kind_of("model.layers.3.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj.weight'
    """
    return _NUMBER.sub("*", name)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, warnings, notes, each said once; else as they were found."""
    unique = list(dict.fromkeys(findings))
    return sorted(unique, key=lambda finding: SEVERITIES.index(finding.severity))


def findings_text(findings: Sequence[Finding]) -> str:
    """All findings under their severities, one line each, and a last line that counts them."""
    lines: list[str] = []
    for severity in SEVERITIES:
        own = [finding for finding in findings if finding.severity == severity]
        if own:
            lines.append(f"{severity}s ({len(own)})")
            lines += [f"  {finding.line}" for finding in own]
    if not findings:
        return "Nothing found: models, tokenizers and parameters fit each other."
    counts = Counter(finding.severity for finding in findings)
    said = [f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in SEVERITIES]
    return "\n".join([*lines, ", ".join(said)])
