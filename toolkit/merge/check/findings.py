"""What a check found: where, what, the values, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from toolkit.errors import Fault, Severity, ToolkitError

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PATTERNS = 3
"""Kinds of tensors named in one line; the others are counted."""


@dataclass(frozen=True)
class StructuralFault(Fault):
    """Models whose tensors do not lie side by side.

    Attributes:
        covers: tensors or stacks that it speaks of: what the plan would refuse about them first is
            said by it already.
    """

    covers: frozenset[str] = frozenset()


def from_message(message: str, severity: Severity = "error") -> Fault:
    """A fault from an error's text, `where: what. what to do.`

    >>> from_message("density: must be from 0 to 1 (got 2).").where
    'density'
    """
    where, _, what = message.partition(": ")
    if not what:
        where, what = "merge", message
    return Fault(where, what.removesuffix("."), severity=severity)


def faults_of(error: ToolkitError) -> Sequence[Fault]:
    """What an error lists, or the one fault that its text says."""
    return error.faults or (from_message(str(error)),)


def summarize_names(names: Collection[str], what: str = "tensor") -> str:
    """Many names in few words: layers are folded into one kind.

    >>> summarize_names([f"model.layers.{i}.mlp.bias" for i in range(24)])
    '24 tensors like model.layers.*.mlp.bias'
    >>> summarize_names(["lm_head.weight"])
    'lm_head.weight'
    >>> summarize_names([f"{kind}.{i}.w" for kind in "abcd" for i in range(2)])
    '8 tensors like a.*.w (2), b.*.w (2), c.*.w (2) and 1 more kind'
    """
    if len(names) == 1:
        return next(iter(names))
    kind_counts = Counter(map(kind_of, names))
    shown_kinds = [
        f"{kind} ({count})" if len(kind_counts) > 1 else kind
        for kind, count in list(kind_counts.items())[:_PATTERNS]
    ]
    num_more = len(kind_counts) - len(shown_kinds)
    more_text = f" and {num_more} more kind{'s' if num_more > 1 else ''}" if num_more else ""
    return f"{len(names)} {what}s like {', '.join(shown_kinds)}{more_text}"


def kind_of(name: str) -> str:
    """A tensor's name without the number of its layer.

    >>> kind_of("model.layers.3.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj.weight'
    """
    return _NUMBER.sub("*", name)


def as_sentence(fault: Fault) -> str:
    """A fault as its line in the list: a question keeps its mark, all else has a full stop."""
    text = str(fault)
    return text if text.endswith("?") else f"{text}."


def in_order(findings: Iterable[Fault]) -> list[Fault]:
    """Errors, warnings, notes, each said once; else as they were found."""
    unique_findings = list(dict.fromkeys(findings))
    return sorted(unique_findings, key=lambda finding: SEVERITIES.index(finding.severity))


def findings_text(findings: Sequence[Fault]) -> str:
    """All findings under their severities, one line each, and a last line that counts them."""
    lines: list[str] = []
    for severity in SEVERITIES:
        own_findings = [finding for finding in findings if finding.severity == severity]
        if own_findings:
            lines.append(f"{severity}s ({len(own_findings)})")
            lines += [f"  {as_sentence(finding)}" for finding in own_findings]
    if not findings:
        return "Nothing found: models, tokenizers and parameters fit each other."
    severity_counts = Counter(finding.severity for finding in findings)
    said = [f"{severity_counts[s]} {s}{'' if severity_counts[s] == 1 else 's'}" for s in SEVERITIES]
    return "\n".join([*lines, ", ".join(said)])
