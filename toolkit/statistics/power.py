"""How much a set can see, and how many groups would be needed to see more."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from toolkit.statistics.change_bound import ChangeBound
from toolkit.statistics.interval import normal_quantile, student_quantile

_MOST_NEEDED = 2**60
"""No set has so many groups: what needs more, or is shown by no number of them, is said to need
these."""


def smallest_shown(change: ChangeBound, confidence: float = 0.95, wanted: float = 0.8) -> float:
    """The smallest true difference that groups like these show with the wanted chance.

    It must overcome the bound that decides, and what that scatters by from sample to sample.

    Args:
        change: as one candidate scatters.
        confidence: of the one-sided bound.
        wanted: chance to show it.

    Reference:
        Cohen 1988, Statistical power analysis, chapter 2; Lachin 1981, Introduction to sample size
        determination, equation 1.

    >>> round(smallest_shown(ChangeBound(0.0, 0.0, 0.01, 29.0, 30)), 4)
    0.0257
    """
    if change.num_groups < 2:
        return math.inf
    return (
        change.upper_bound(confidence)
        - change.estimate
        + change.spread_of_bound(confidence) * student_quantile(wanted, change.freedom)
    )


def needed_groups(
    change: ChangeBound, difference: float, confidence: float = 0.95, wanted: float = 0.8
) -> int:
    """How many groups like these show a difference of this size with the wanted chance.

    Args:
        change: as one candidate scatters on the set at hand, or a pilot.
        difference: to be seen, above zero.
        confidence: of the one-sided bound.
        wanted: chance to see it.

    >>> needed_groups(ChangeBound(0.0, 0.0, 0.01, 29.0, 30), 0.01)
    188
    """

    def is_enough(count: int) -> bool:
        return smallest_shown(change.as_of(count), confidence, wanted) <= difference

    too_few, enough_groups = 1, 2
    # More groups show smaller differences: doubling finds an upper end, bisection the first number
    # that is enough.
    while enough_groups < _MOST_NEEDED and not is_enough(enough_groups):
        too_few, enough_groups = enough_groups, 2 * enough_groups
    while enough_groups - too_few > 1 and enough_groups < _MOST_NEEDED:
        middle_count = (too_few + enough_groups) // 2
        if is_enough(middle_count):
            enough_groups = middle_count
        else:
            too_few = middle_count
    return enough_groups


def needed_answers(
    tolerance: float, changed: float, confidence: float = 0.95, wanted: float = 0.8
) -> int:
    """How many right-or-wrong items can show that no more than a tolerance is lost.

    Args:
        tolerance: largest share of answers that may be lost, above 0.
        changed: share of answers that differ between the two models.
        confidence: of the one-sided bound.
        wanted: chance to show it of a model that loses nothing.

    Reference:
        Tango 1998 with no answer changed: n >= z^2 (1 - tolerance) / tolerance; Connor 1987, Sample
        size for testing differences in proportions for the paired-sample design, else.

    >>> needed_answers(0.01, 0.0), needed_answers(0.01, 0.1)
    (268, 6183)
    """
    bound_quantile = normal_quantile(confidence)
    least_items = bound_quantile**2 * (1.0 - tolerance) / tolerance
    power_quantiles = bound_quantile + normal_quantile(wanted)
    # Divided twice, as the square of a tiny tolerance is zero.
    items_with_changes = power_quantiles**2 * changed / tolerance / tolerance
    return math.ceil(min(max(least_items, items_with_changes), _MOST_NEEDED))


@dataclass(frozen=True)
class SetPower:
    """What a set can see of a loss, as one candidate scatters on it.

    Attributes:
        name: of the set.
        role: `domain` or `general`.
        unit: of its figure.
        num_items, num_groups: of the set.
        smallest_change: that is shown with a chance of 80 %, in the unit.
        tolerance: largest loss accepted; None of a domain set.
        needed: groups (or right-or-wrong items) that the tolerance takes; None of a domain set, and
            where none is tolerated.
    """

    name: str
    role: str
    unit: str
    num_items: int
    num_groups: int
    smallest_change: float
    tolerance: float | None
    needed: int | None

    @property
    def is_enough(self) -> bool:
        return self.needed is None or self.needed <= self.num_groups

    @property
    def sentence(self) -> str:
        group_word = "items" if self.num_groups == self.num_items else "groups"
        size_text = f"{self.num_groups} {group_word}"
        if self.num_groups < self.num_items:
            size_text = f"{self.num_items} items in {self.num_groups} {group_word}"
        if not math.isfinite(self.smallest_change):
            return f"{self.name} ({self.role}): {size_text} see nothing."
        is_gain = self.role == "domain" and self.tolerance is None
        change_word = "gain" if is_gain else "loss"
        seen_text = (
            f"{self.name} ({self.role}): {size_text} see a {change_word} of "
            f"{self.smallest_change:.2g}"
        )
        seen_text = f"{seen_text} {self.unit} at the earliest"
        if self.tolerance is None or self.needed is None:
            return f"{seen_text}."
        if self.is_enough:
            return (
                f"{seen_text}; {self.tolerance:g} is tolerated, about {self.needed} are needed for "
                "it."
            )
        return (
            f"{seen_text}, the tolerance is {self.tolerance:g}: about {self.needed} {group_word} "
            "are needed, and a merge that loses nothing may well not pass."
        )

    def as_json(self) -> dict[str, object]:
        is_finite = math.isfinite(self.smallest_change)
        return {
            **asdict(self),
            "smallest_change": self.smallest_change if is_finite else None,
            "sentence": self.sentence,
        }


def power_of(
    name: str,
    role: str,
    unit: str,
    num_items: int,
    tolerance: float | None,
    change: ChangeBound,
    confidence: float = 0.95,
) -> SetPower:
    """What a set can see, from the scatter of one change on it.

    Args:
        name: of the set.
        role: `domain` or `general`.
        unit: of its figure.
        num_items: of the set.
        tolerance: largest loss accepted, None of a domain set.
        change: of a first candidate against the general model.
        confidence: of the one-sided bound.
    """
    num_groups = change.num_groups
    smallest_change = smallest_shown(change, confidence)
    needed = None
    # A tolerance of zero is shown by no number of groups, so none is named.
    if tolerance and num_groups > 1:
        if change.answers is not None:
            # The score test decides here, and what it needs follows from how many answers change.
            num_worse, num_better, total = change.answers
            needed = needed_answers(tolerance, (num_worse + num_better) / total, confidence)
        elif change.error > 0.0:
            needed = needed_groups(change, tolerance, confidence)
        else:
            needed = 2
    return SetPower(name, role, unit, num_items, num_groups, smallest_change, tolerance, needed)
