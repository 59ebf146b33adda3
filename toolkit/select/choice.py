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
    front_names: list[str] = []
    # Best domain first: whoever does not lower the general figure is beaten by one before it.
    lowest_general = float("inf")
    whole = (c for c in candidates if c.is_complete)
    # Ties are decided by figures, never by the order in which merges were tried.
    for candidate in sorted(whole, key=lambda c: (c.domain, c.general, c.distance)):
        if candidate.general < lowest_general:
            front_names.append(candidate.name)
            lowest_general = candidate.general
    return front_names


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
    front_points = [by_name[name] for name in front]
    if len(front_points) < 3:
        return None
    domain_end, last = front_points[0], front_points[-1]
    width, height = last.domain - domain_end.domain, domain_end.general - last.general

    # 0 on the line between the ends, more inside it.
    def inside(c: ScoredCandidate) -> float:
        return 1.0 - (c.domain - domain_end.domain) / width - (c.general - last.general) / height

    knee_point = max(front_points, key=inside)
    return knee_point.name if inside(knee_point) > 0.0 else None
