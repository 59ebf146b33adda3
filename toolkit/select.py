"""The choice: the largest domain gain among the merges that keep the general ability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from toolkit.config import Section


class SelectSection(Section):
    """What a merge must keep, and how sure that must be."""

    general_tolerance: Annotated[float, Field(ge=0.0)] = 0.01
    """Largest general loss accepted, in the unit of the set (bits per byte for documents), above
    the general model's. Each general set must stay within it by itself."""

    tolerances: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default_factory=dict)
    """The same for single general sets by name, such as one in another unit."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of the one-sided bound on the general loss that must stay within it, and that the
    domain is gained at all."""


@dataclass(frozen=True)
class Candidate:
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
class Confirmed:
    """One of the few that are looked at again.

    Attributes:
        name: of the candidate.
        domain: figure on all tuning documents.
        p_value: of what must be refuted: that it gains nothing, or loses more than the tolerance.
        distance: as of `Candidate`.
    """

    name: str
    domain: float
    p_value: float
    distance: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        chosen: name of the candidate.
        reason: sentences for people.
        qualified: names of all candidates within the tolerance on the documents of the search.
        any_merge: whether anything but the general model itself was confirmed with a gain.
    """

    chosen: str
    reason: str
    qualified: tuple[str, ...]
    any_merge: bool


def qualified_names(
    candidates: Sequence[Candidate], general: str, section: SelectSection
) -> tuple[str, ...]:
    """Candidates scored in full that stay within the tolerance; the general model always does."""
    limit = section.general_tolerance
    return tuple(
        c.name
        for c in candidates
        if c.name == general or (c.is_complete and c.general_loss_bound <= limit)
    )


def shortlist(
    candidates: Sequence[Candidate], general: str, section: SelectSection, count: int
) -> tuple[str, ...]:
    """The few to confirm: qualified, with a gain on the domain, the largest gains first."""
    start = next(c for c in candidates if c.name == general)
    names = qualified_names(candidates, general, section)
    gaining = [c for c in candidates if c.name in names and c.domain < start.domain]
    gaining.sort(key=lambda c: (c.domain, c.distance, c.name))
    return tuple(c.name for c in gaining[:count])


def choose(
    candidates: Sequence[Candidate],
    confirmed: Sequence[Confirmed],
    is_tied: Callable[[str, str], bool],
    general: str,
    section: SelectSection,
    *,
    num_tests: int | None = None,
    where: str = "",
) -> Choice:
    """Pick one candidate by constraint.

    A candidate must refute, on the documents it is confirmed on, that it gains nothing on the
    domain or loses more than the tolerance on a general set. Of those that do, the best on the
    domain sets the mark, and of all that are statistically tied with it the one nearest the general
    model is chosen.

    Args:
        candidates: all of the search, the general model included.
        confirmed: the few looked at again.
        is_tied: whether two of them cannot be told apart on the domain.
        general: name of the general model.
        section: tolerance and confidence.
        num_tests: what the p-values are corrected for: by default the number confirmed (Holm's
            steps); all candidates tried, where they are confirmed on the search's own documents.
        where: what they were confirmed on, for the reason.

    Reference:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    names = qualified_names(candidates, general, section)
    passed = holm([c.p_value for c in confirmed], 1.0 - section.confidence, num_tests)
    kept = [c for c, good in zip(confirmed, passed, strict=True) if good]
    level = f"({section.confidence:.0%} bound)"
    if not kept:
        return Choice(
            general, _nothing(candidates, confirmed, general, section, where), names, False
        )
    best = min(kept, key=lambda c: (c.domain, c.distance, c.name))
    ties = [c for c in kept if c is best or is_tied(c.name, best.name)]
    chosen = min(ties, key=lambda c: (c.distance, c.domain, c.name))
    start = next(c for c in candidates if c.name == general)
    gain = start.domain - next(c for c in candidates if c.name == chosen.name).domain
    dropped = sum(not c.is_complete for c in candidates)
    early = f", {dropped} were dropped early" if dropped else ""
    why = (
        f"{chosen.name} has the largest domain gain of them ({gain:.4f})"
        if len(ties) == 1
        else f"{chosen.name} is the nearest to the general model of {len(ties)} that cannot be "
        f"told apart on the domain (its gain: {gain:.4f})"
    )
    reason = (
        f"Of {len(candidates)} candidates {len(names)} stay within what general sets may lose "
        f"{level}{early}; of {len(confirmed)} looked at again{where} {len(kept)} "
        f"{'is' if len(kept) == 1 else 'are'} confirmed, and {why}."
    )
    return Choice(chosen.name, reason, names, any_merge=True)


def _nothing(
    candidates: Sequence[Candidate],
    confirmed: Sequence[Confirmed],
    general: str,
    section: SelectSection,
    where: str,
) -> str:
    kept = "The general model is kept."
    level = f"{section.general_tolerance:g} ({section.confidence:.0%} bound)"
    if confirmed:
        best = min(confirmed, key=lambda c: (c.p_value, c.name))
        return (
            f"No merge was confirmed{where} to gain on the domain with a general loss within "
            f"{level}; {best.name} came nearest (p = {best.p_value:.2g} before correction). {kept}"
        )
    nearest = min(
        (c for c in candidates if c.name != general),
        key=lambda c: (not c.is_complete, c.general_loss_bound, c.distance),
        default=None,
    )
    detail = ""
    if nearest is not None:
        loss = nearest.general_loss_bound
        detail = f"; the nearest is {nearest.name}, whose general loss may be {loss:+.4f}"
    return f"No merge gains on the domain with a general loss within {level}{detail}. {kept}"


def holm(p_values: Sequence[float], error: float, num_tests: int | None = None) -> list[bool]:
    """Which hypotheses are refuted with the chance of any false one held at `error`.

    Args:
        p_values: of each hypothesis.
        error: for all of them together.
        num_tests: of which these are the smallest, where there were more.

    Reference:
        Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.04, 0.02], 0.05), holm([0.04, 0.03], 0.05)
    ([True, True], [False, False])
    """
    total = max(num_tests or 0, len(p_values))
    refuted = [False] * len(p_values)
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > error / (total - step):
            break
        refuted[index] = True
    return refuted


def pareto_front(candidates: Sequence[Candidate]) -> list[str]:
    """Candidates scored in full that no other one beats on both sides, best domain first.

    >>> points = [("a", 1, 2), ("b", 2, 1), ("c", 2, 2)]
    >>> pareto_front([Candidate(n, d, g, 0.0, 0.5) for n, d, g in points])
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


def knee(candidates: Sequence[Candidate], front: Sequence[str]) -> str | None:
    """The point of a front where more of one side begins to cost most of the other.

    It is the one farthest inside the line between the front's ends, both sides scaled to [0, 1];
    None for a front of fewer than three.

    Reference:
        Das 1999, On characterizing the "knee" of the Pareto curve.

    >>> points = [("a", 0.0, 1.0), ("b", 0.1, 0.2), ("c", 1.0, 0.0)]
    >>> knee([Candidate(n, d, g, 0.0, 0.5) for n, d, g in points], ["a", "b", "c"])
    'b'
    """
    by_name = {c.name: c for c in candidates}
    points = [by_name[name] for name in front]
    if len(points) < 3:
        return None
    first, last = points[0], points[-1]
    width, height = last.domain - first.domain, first.general - last.general

    def inside(c: Candidate) -> float:
        return 1.0 - (c.domain - first.domain) / width - (c.general - last.general) / height

    best = max(points, key=inside)
    return best.name if inside(best) > 0.0 else None
