"""A plain sentence about something that is off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remark:
    """One sentence or two.

    Attributes:
        kind: what it is about, for programs.
        text: for people, with the values.
    """

    kind: str
    text: str
