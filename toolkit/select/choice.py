"""Candidates and the choice among them: the front, and its knee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredCandidate:
    """A merge with its scores on the documents of the search.

    Attributes:
        name: such as `linear alpha=0.6`.
        domain: figure on the domain sets, lower is better.
        general: figure on the general sets.
        general_loss_bound: upper bound of the general loss; within the tolerance where every
            general set is within its own.
        distance: how far it moved from the general model, relative to the specialist's own way.
        is_complete: whether it was scored on all of them; otherwise it cannot be chosen.
    """

    name: str
    domain: float
    general: float
    general_loss_bound: float
    distance: float
    is_complete: bool = True


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        chosen: name of the candidate.
        reason: sentences for people.
        qualified: names of all candidates within the tolerance: plain means as they were tested on
            all validation documents, others on the documents of the search.
        any_merge: whether anything but the general model itself was confirmed with a gain.
    """

    chosen: str
    reason: str
    qualified: tuple[str, ...]
    any_merge: bool


def pareto_front(candidates: Sequence[ScoredCandidate]) -> list[str]:
    """Candidates scored in full that no other one beats on both sides, best domain first.

    >>> points = [("a", 1, 2), ("b", 2, 1), ("c", 2, 2)]
    >>> pareto_front([ScoredCandidate(n, d, g, 0.0, 0.5) for n, d, g in points])
    ['a', 'b']
    """
    front: list[str] = []
    lowest = float("inf")
    whole = (c for c in candidates if c.is_complete)
    for candidate in sorted(whole, key=lambda c: (c.domain, c.general, c.distance)):
        if candidate.general < lowest:
            front.append(candidate.name)
            lowest = candidate.general
    return front


def knee(candidates: Sequence[ScoredCandidate], front: Sequence[str]) -> str | None:
    """The point of a front where more of one side begins to cost most of the other.

    It is the one farthest inside the line between the front's ends, both sides scaled to [0, 1];
    None for a front of fewer than three.

    Reference:
        Das 1999, On characterizing the "knee" of the Pareto curve.

    >>> points = [("a", 0.0, 1.0), ("b", 0.1, 0.2), ("c", 1.0, 0.0)]
    >>> knee([ScoredCandidate(n, d, g, 0.0, 0.5) for n, d, g in points], ["a", "b", "c"])
    'b'
    """
    by_name = {c.name: c for c in candidates}
    points = [by_name[name] for name in front]
    if len(points) < 3:
        return None
    first, last = points[0], points[-1]
    width, height = last.domain - first.domain, first.general - last.general

    def inside(c: ScoredCandidate) -> float:
        return 1.0 - (c.domain - first.domain) / width - (c.general - last.general) / height

    best = max(points, key=inside)
    return best.name if inside(best) > 0.0 else None
