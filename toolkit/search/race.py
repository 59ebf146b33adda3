"""The race: what may be concluded about a candidate from part of the documents.

Documents come in a random order, so that those scored so far are a sample, drawn without
replacement, of all that full scoring would use. A candidate is dropped when it is shown, at one of
K looks, that full scoring would not call it better than the best one so far, or would not let it
stay within the tolerance of a general set. Better means ahead by an interval that is corrected for
all candidates (Bonferroni): less than that, the best of many is ahead by luck. Each look spends 1/K
of the error, half of it on either question, so that over all looks a candidate that full scoring
would call better is lost with at most that chance, whatever else is tried (it need only survive its
own comparisons).

Reference:
    Maron & Moore 1994, Hoeffding races; Birattari et al. 2002, A racing algorithm for configuring
    metaheuristics (F-race); Lan, Simon & Halperin 1982, Stochastically curtailed tests, for the
    question asked; Hsu 1981, Simultaneous confidence intervals for all distances from the "best",
    for what counts as better; Bardenet & Maillard 2015, Concentration inequalities for sampling
    without replacement, for the factor 1 - n/N; Pocock 1977 for equal spending over looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.evaluate.student import student_quantile

Floats = NDArray[np.float64]
MIN_GROUPS = 5
"""With fewer documents than this nothing is concluded: their spread is not known."""


@dataclass(frozen=True)
class Difference:
    """A candidate's figure minus a reference's on the same items, from part of them.

    Attributes:
        estimate: in the unit of the set.
        variance: of the estimate, were the items drawn from an endless number of them.
        seen: groups (documents) scored.
        total: groups that full scoring would use.
    """

    estimate: float
    variance: float
    seen: int
    total: int

    @property
    def still_open(self) -> float:
        """Variance of what full scoring would still change."""
        return self.variance * (1.0 - self.seen / self.total)

    @property
    def in_the_end(self) -> float:
        """Variance that the difference has after full scoring."""
        return self.variance * self.seen / self.total


def paired_difference(
    losses: ArrayLike,
    reference: ArrayLike,
    sizes: ArrayLike,
    groups: NDArray[np.intp],
    total: int,
    scale: float = 1.0,
) -> Difference:
    """The difference of two ratios of sums over the same items, with its linearised variance.

    Args:
        losses: of the candidate, `[D]`.
        reference: of what it is compared with, `[D]`.
        sizes: `[D]`.
        groups: number of the group of each item, counted from 0 in the order of the race, `[D]`.
        total: groups that full scoring would use.
        scale: from losses over sizes to the unit.

    Reference:
        Cochran 1977, Sampling techniques, chapter 6 (ratio estimates) and 9 (clusters).

    >>> paired_difference([1.0, 3.0], [0.0, 0.0], [1.0, 1.0], np.array([0, 1]), 4)
    Difference(estimate=2.0, variance=1.0, seen=2, total=4)
    """
    size = np.asarray(sizes, dtype=np.float64)
    change = np.asarray(losses, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    whole = float(size.sum())
    ratio = float(change.sum()) / whole
    residuals = np.bincount(groups, weights=change - ratio * size)
    seen = len(residuals)
    variance = math.inf
    if seen > 1:
        variance = seen / (seen - 1) * float(np.square(residuals).sum()) / whole**2
    return Difference(scale * ratio, scale**2 * variance, seen, total)


def combine(differences: Sequence[Difference], weights: Sequence[float]) -> Difference:
    """The weighted mean of differences on several sets; the smallest set decides how sure it is."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    if len(differences) == 1:
        return differences[0]
    # Each set may have been seen to another share, so both variances are added up by themselves.
    still = sum(w * w * d.still_open for w, d in zip(shares, differences, strict=True))
    end = sum(w * w * d.in_the_end for w, d in zip(shares, differences, strict=True))
    fewest = min(differences, key=lambda d: d.seen)
    seen_share = end / (still + end) if 0.0 < still + end < math.inf else 1.0
    return Difference(
        float(sum(w * d.estimate for w, d in zip(shares, differences, strict=True))),
        float(still + end),
        fewest.seen,
        max(fewest.seen, round(fewest.seen / max(seen_share, 1e-9))),
    )


def is_out(difference: Difference, limit: float, quantile: float, spend: float) -> bool:
    """Whether full scoring would surely leave `estimate + quantile · its error` above `limit`.

    Args:
        difference: so far.
        limit: what a bound over all items would have to stay below.
        quantile: of the bound that full scoring would be judged by; below 0 for a lower bound.
        spend: chance of saying so wrongly.

    >>> far = Difference(0.1, 0.0001, 10, 40)
    >>> is_out(far, 0.0, 1.96, 0.004), is_out(Difference(-0.1, 0.0001, 10, 40), 0.0, 1.96, 0.004)
    (True, False)
    """
    if difference.seen < min(MIN_GROUPS, difference.total):
        return False
    margin = difference.estimate + quantile * math.sqrt(difference.in_the_end) - limit
    if difference.still_open <= 0.0:
        return margin > 0.0 or (margin == 0.0 and difference.variance == 0.0)
    wanted = student_quantile(1.0 - spend, difference.seen - 1)
    return margin / math.sqrt(difference.still_open) > wanted


def spending(error: float, looks: int) -> float:
    """The chance that one question may spend at one look."""
    return error / (2.0 * looks)


def sure_side(confidence: float) -> float:
    """Normal quantile of a one-sided bound.

    >>> round(sure_side(0.95), 3)
    1.645
    """
    return NormalDist().inv_cdf(confidence)
