"""Simulated worlds: how often bounds hold, and what they can show.

Groups have lengths; the specialist gains on each by a rate around 1, the merge 80 % of it with
scatter of its own. Rates are normal, skewed to either side (exponential, skewness 2; lognormal,
2.3 and 6.2), or of heavy tails (Student's t, 3 degrees of freedom), and may rise with the square
root of the length. Printed are the share of one-sided 95 % bounds that the truth exceeds, by
Student's t, by the farther of it and the studentized bootstrap, and by the bound that is used; the
chance of each to show a difference that Student's t shows in 80 % where all is normal; and the
share of two-sided 95 % intervals that hold the change, and the share that is kept.

Run: python benchmarks/bounds.py --worlds 4000
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from toolkit.statistics.paired import PairedChanges
from toolkit.statistics.set_changes import SetChanges

Floats = NDArray[np.float64]
KEPT, RESAMPLES = 0.8, 999
TAILS = (
    "normal", "exponential up", "exponential down", "lognormal 0.6 up", "lognormal 1.0 up",
    "lognormal 1.0 down", "t with 3",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """What is drawn.

    Attributes:
        tail: of the rates.
        spread: of the logarithm of the lengths.
        along: power of the length that rates go with.
        groups: how many.
    """

    tail: str
    spread: float
    along: float
    groups: int

    @property
    def truth(self) -> float:
        """The specialist's true change."""
        return math.exp(self.spread**2 * ((1.0 + self.along) ** 2 - 1.0) / 2.0)

    @property
    def shift(self) -> float:
        """What Student's t shows in 80 % of normal worlds with equal lengths."""
        chances = (0.95, 0.8)
        errors = sum(float(stdtrit(self.groups - 1, chance)) for chance in chances)
        return 0.6 * errors / math.sqrt(self.groups)


def draw(generator: np.random.Generator, tail: str, groups: int) -> Floats:
    """Of mean 0 and variance 1."""
    sign = -1.0 if tail.endswith("down") else 1.0
    if tail.startswith("exponential"):
        return np.asarray(sign * (generator.exponential(size=groups) - 1.0))
    if tail.startswith("lognormal"):
        variance = float(tail.split()[1]) ** 2
        values = np.exp(math.sqrt(variance) * generator.normal(size=groups))
        mean, spread = math.exp(variance / 2.0), math.sqrt(math.exp(variance) - 1.0)
        return np.asarray(sign * (values / mean - 1.0) / spread)
    if tail == "t with 3":
        return np.asarray(generator.standard_t(3, size=groups) / math.sqrt(3.0))
    return np.asarray(generator.normal(size=groups))


def bootstrap_reach(tops: Floats, sizes: Floats, counts: Floats) -> float:
    """Errors to the upper bound of the studentized bootstrap (Efron & Tibshirani 1993, 12.5)."""
    center = tops.sum() / sizes.sum()
    top, size, square, cross, length = (
        counts @ row for row in (tops, sizes, tops**2, tops * sizes, sizes**2)
    )
    ratio = top / size
    few = len(sizes) / (len(sizes) - 1)
    error = np.sqrt(np.maximum(few * (square - 2 * ratio * cross + ratio**2 * length), 0.0)) / size
    moved = np.where(error > 1e-12, (ratio - center) / np.maximum(error, 1e-12), 0.0)
    return -float(np.quantile(moved, 0.05))


def measure(world: World, worlds: int, bootstraps: int) -> list[float]:
    """Percent of each column of the table."""
    generator = np.random.default_rng(
        [world.groups, TAILS.index(world.tail), int(10 * world.along), int(100 * world.spread)]
    )
    chances = np.full(world.groups, 1.0 / world.groups)
    counts = generator.multinomial(world.groups, chances, size=RESAMPLES).astype(np.float64)
    hits: list[list[bool]] = [[] for _ in range(8)]
    for number in range(worlds):
        sizes = np.exp(world.spread * generator.normal(size=world.groups))
        longer = sizes**world.along
        rate = (1.0 + 0.6 * draw(generator, world.tail, world.groups)) * longer
        merge = KEPT * rate + 0.2 * draw(generator, world.tail, world.groups) * longer
        moved = np.array([rate * sizes, merge * sizes])
        found = PairedChanges([SetChanges(moved, sizes)])
        change = found.change()
        student = float(stdtrit(world.groups - 1, 0.95))
        bounds = [change.estimate + student * change.error, change.upper_bound(0.95)]
        if number < bootstraps:
            reach = max(student, bootstrap_reach(moved[0], sizes, counts))
            bounds.append(change.estimate + reach * change.error)
        for place, bound in enumerate(bounds):
            hits[place].append(bound < world.truth)
            hits[3 + place].append(bound < world.truth + world.shift)
        interval, share = change.interval(), found.ratio(1, 0) if number < bootstraps else None
        hits[6].append(interval.low <= world.truth <= interval.high)
        if share is not None:
            hits[7].append(share.low <= KEPT <= share.high)
    return [100.0 * float(np.mean(one)) if one else math.nan for one in hits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=4000)
    parser.add_argument("--bootstraps", type=int, default=1000, help="and shares, which are slow")
    given = parser.parse_args()
    print(
        "| rates | groups | bound exceeded: t, bootstrap, used | power: t, bootstrap, used | "
        "change covered | share covered |\n|---|---|---|---|---|---|"
    )
    for spread, along in ((0.4, 0.0), (0.5, 0.5)):
        for tail in TAILS:
            for groups in (8, 14, 16, 40):
                found = measure(World(tail, spread, along, groups), given.worlds, given.bootstraps)
                t, used, old, t_power, used_power, old_power, change, share = found
                name = tail + (", along length" if along else "")
                print(
                    f"| {name} | {groups} | {t:.1f}, {old:.1f}, **{used:.1f}** | {t_power:.0f}, "
                    f"{old_power:.0f}, {used_power:.0f} | {change:.1f} | {share:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
