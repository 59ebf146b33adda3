"""The choice: the largest domain gain among the merges that keep the general ability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from toolkit.config import Section


class SelectSection(Section):
    """What a merge must keep, and how sure that must be."""

    general_tolerance: Annotated[float, Field(ge=0.0)] = 0.01
    """Largest general loss accepted, in bits per byte above the general model's."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of the one-sided bound on the general loss that must stay within it."""


@dataclass(frozen=True)
class Candidate:
    """A merge with its scores on the tuning sets.

    Attributes:
        name: such as `linear alpha=0.6`.
        domain: bits per byte on the domain documents.
        general: bits per byte on the general documents.
        general_loss_bound: upper bound of `general` minus the general model's, bits per byte.
        distance: how far it moved from the general model, relative to the specialist's own way.
    """

    name: str
    domain: float
    general: float
    general_loss_bound: float
    distance: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        chosen: name of the candidate.
        reason: a sentence for people.
        qualified: names of all candidates within the tolerance.
        any_merge: whether anything but the general model itself qualified with a gain.
    """

    chosen: str
    reason: str
    qualified: tuple[str, ...]
    any_merge: bool


def choose(candidates: Sequence[Candidate], general: str, section: SelectSection) -> Choice:
    """Pick one candidate by constraint.

    Args:
        candidates: all of them, the general model and the specialist included.
        general: name of the general model among them; it always qualifies.
        section: tolerance and confidence.

    Returns:
        The qualified candidate with the lowest domain loss; of equals, the one nearest the general
        model. The general model itself when no other both qualifies and gains.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    start = by_name[general]
    limit = section.general_tolerance
    qualified = [c for c in candidates if c.name == general or c.general_loss_bound <= limit]
    gaining = [c for c in qualified if c.domain < start.domain]
    names = tuple(c.name for c in qualified)
    if not gaining:
        nearest = min(
            (c for c in candidates if c.name != general),
            key=lambda c: (c.general_loss_bound, c.distance),
            default=None,
        )
        detail = (
            f"; the nearest is {nearest.name}, whose general loss may be "
            f"{nearest.general_loss_bound:+.4f}"
            if nearest is not None
            else ""
        )
        return Choice(
            general,
            f"No merge gains on the domain with a general loss within {limit:g} bits per byte "
            f"({section.confidence:.0%} bound){detail}. The general model is kept.",
            names,
            any_merge=False,
        )
    best = min(gaining, key=lambda c: (c.domain, c.distance, c.name))
    return Choice(
        best.name,
        f"Of {len(candidates)} candidates {len(qualified)} stay within a general loss of "
        f"{limit:g} bits per byte ({section.confidence:.0%} bound); {best.name} has the largest "
        f"domain gain of them ({start.domain - best.domain:.4f}).",
        names,
        any_merge=True,
    )
