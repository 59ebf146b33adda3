"""Simulated worlds: how often bounds hold, as they were (t, percentiles) and as they are.

Groups have lengths; the specialist gains on each by a rate around 1, the merge 80 % of it with
scatter of its own. Rates are normal, or skewed (exponential), to either side, and may rise with the
square root of the length. Printed are the share of two-sided 95 % intervals that hold the truth, of
the change, of the share that is kept, and of one-sided 95 % bounds that it exceeds.

Run: python benchmarks/bounds.py --worlds 400
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluate.bootstrap import bootstrap_figures, intervals
from toolkit.evaluate.statistics import percentile_interval
from toolkit.search.objective import upper_bound
from toolkit.search.race import paired_difference
from toolkit.statistics.paired import PairedChanges
from toolkit.statistics.set_changes import SetChanges

Floats = NDArray[np.float64]
Answer = tuple[bool, bool, bool | None]
KEPT, SPREAD = 0.8, 0.5


def draw(generator: np.random.Generator, tail: str, groups: int) -> Floats:
    """Of mean 0 and variance 1."""
    if tail == "normal":
        return np.asarray(generator.normal(size=groups))
    sign = -1.0 if tail == "skewed down" else 1.0
    return np.asarray(sign * (generator.exponential(size=groups) - 1.0))


def before(moved: Floats, sizes: Floats, truth: float, seed: int) -> Answer:
    """Student's t for the bound, the farther of t and bootstrap-t shown, percentiles of a share."""
    names = [str(n) for n in range(len(sizes))]
    found = bootstrap_figures(moved, sizes, names, resamples=999, seed=seed)
    shown = intervals(found)
    index = np.arange(len(sizes))
    bound = upper_bound(paired_difference(moved[0], 0 * moved[0], sizes, index, len(index)), 0.95)
    share = None
    if shown[0].low > 0.0:
        usable = found.draws[found.draws[:, 0] > 0.0]
        interval = percentile_interval(KEPT, usable[:, 1] / usable[:, 0])
        share = interval.low <= KEPT <= interval.high
    return bound < truth, shown[0].low <= truth <= shown[0].high, share


def after(moved: Floats, sizes: Floats, truth: float, seed: int) -> Answer:
    """The one bound: no seed, its resamples are fixed."""
    del seed
    found = PairedChanges([SetChanges(moved, sizes)], num_resamples=999)
    change = found.change()
    interval, share = change.interval(), found.ratio(1, 0)
    within = None if share is None else share.low <= KEPT <= share.high
    return change.upper_bound(0.95) < truth, interval.low <= truth <= interval.high, within


def measure(
    judge: Callable[[Floats, Floats, float, int], Answer],
    groups: int,
    tail: str,
    along: float,
    worlds: int,
) -> list[float]:
    """Percent of bounds exceeded, of changes covered, of shares covered."""
    generator = np.random.default_rng([groups, len(tail), int(10 * along)])
    truth = math.exp(SPREAD**2 * ((1.0 + along) ** 2 - 1.0) / 2.0)
    answers = []
    for world in range(worlds):
        sizes = np.exp(SPREAD * generator.normal(size=groups))
        rate = (1.0 + 0.6 * draw(generator, tail, groups)) * sizes**along
        merge = KEPT * rate + 0.2 * draw(generator, tail, groups) * sizes**along
        moved = np.array([rate * sizes, merge * sizes])
        answers.append(judge(moved, sizes, truth, world))
    shares = [share for *_, share in answers if share is not None]
    exceeded, covered = (np.mean([answer[place] for answer in answers]) for place in (0, 1))
    return [100 * float(value) for value in (exceeded, covered, np.mean(shares))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400)
    worlds = parser.parse_args().worlds
    print("| world | groups | bound exceeded | change covered | share covered |")
    print("|---|---|---|---|---|")
    for tail in ("normal", "skewed up", "skewed down"):
        for along in (0.0, 0.5):
            for groups in (4, 8, 16, 40):
                old, new = (measure(f, groups, tail, along, worlds) for f in (before, after))
                cells = [f"{a:.1f} → {b:.1f}" for a, b in zip(old, new, strict=True)]
                world = tail + (", along length" if along else "")
                print(f"| {world} | {groups} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
