"""The frugal search: a parabola fitted to few evaluations says where to look next.

Figures of merges are smooth in the weights, nearly quadratic around the models (a Taylor expansion
of the loss, whose gradient at a trained model is small), so few evaluations suffice.

Reference:
    Li et al. 2024, MAP: model merging with amortized Pareto fronts (2406.07529): a quadratic
    surrogate of each metric over the merge weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MIN_APART = 0.06
"""Nearer than this, in the unit cube, a point says nothing new."""

PENALTY = 10.0
"""Samplers lower `domain + PENALTY · general loss beyond the tolerance`."""

_POINTS = 4096  # of the cube at which the parabola is looked at
_RIDGE = 1e-4


@dataclass(frozen=True)
class Arm:
    """One file with its choices made: what is left is a point of a unit cube.

    Attributes:
        points: tried so far, `[n, d]`.
        scores: domain figure of each that has one, lower is better; NaN where none is known yet.
        beyond: how far each is beyond what general sets may lose, below 0 within. It is smooth like
            the domain figure; what is lowered, with its kink at the tolerance, is not.
    """

    points: Floats
    scores: Floats
    beyond: Floats

    @property
    def lowered(self) -> Floats:
        """What is to be lowered, of each point."""
        return np.asarray(self.scores + PENALTY * np.maximum(self.beyond, 0.0))

    @property
    def dimensions(self) -> int:
        return int(self.points.shape[1])

    @property
    def num_first_points(self) -> int:
        """Points of a first look around: one, and two for each direction."""
        return 1 + 2 * self.dimensions if self.dimensions else 1


def propose(arms: Sequence[Arm], seed: int) -> tuple[int, Floats]:
    """Where to look next: an arm and a point of its cube, `[d]`.

    First every arm is looked at in a few spread points, one by one in turn; then a parabola is
    fitted to each, and the point that promises most, apart from those tried, is next.

    Args:
        arms: all that may be tried.
        seed: of the points looked at.
    """
    first_fractions = [len(arm.points) / arm.num_first_points for arm in arms]
    if min(first_fractions) < 1.0:
        number = int(np.argmin(first_fractions))
        return number, _spread_point(arms[number], seed)
    promises = [_best_point(arm, seed + number) for number, arm in enumerate(arms)]
    # An arm without numbers to find has been tried and promises nothing.
    number = int(np.argmin([promise for promise, _ in promises]))
    return number, promises[number][1]


def _spread_point(arm: Arm, seed: int) -> Floats:
    """Of many random points the one farthest from all tried; the first is the middle."""
    if len(arm.points) == 0:
        return np.full(arm.dimensions, 0.5)
    random_generator = np.random.default_rng(seed)
    # Off the faces: the farthest points of a cube are its corners, the most extreme merges.
    cube_points = 0.1 + 0.8 * random_generator.random((_POINTS, arm.dimensions))
    return np.asarray(cube_points[int(np.argmax(_apart(cube_points, arm.points)))])


def _best_point(arm: Arm, seed: int) -> tuple[float, Floats]:
    random_generator = np.random.default_rng(seed)
    if arm.dimensions == 0:
        return np.inf, np.zeros(0)
    has_score = np.isfinite(arm.scores)
    cube_points = random_generator.random((_POINTS, arm.dimensions))
    if has_score.any():  # and as many around the best one
        best_point = arm.points[has_score][int(np.argmin(arm.lowered[has_score]))]
        near_points = best_point + random_generator.normal(0.0, 0.15, (_POINTS, arm.dimensions))
        cube_points = np.concatenate([cube_points, np.clip(near_points, 0.0, 1.0)])
    cube_points = cube_points[_apart(cube_points, arm.points) >= MIN_APART]
    if len(cube_points) == 0:
        # No room is left between points tried: another arm is to be asked, if there is one.
        return np.inf, np.full(arm.dimensions, 0.5)
    if not has_score.any():
        return np.inf, np.asarray(cube_points[0])
    # Both smooth figures have a parabola of their own; the kink at the tolerance is made of them
    # afterwards, as one parabola through what is lowered would round it off.
    lowered, points = arm.lowered[has_score], arm.points[has_score]
    domain = fit_quadratic(points, arm.scores[has_score], cube_points, lowered)
    beyond = fit_quadratic(points, arm.beyond[has_score], cube_points, lowered)
    promise = domain + PENALTY * np.maximum(beyond, 0.0)
    best_place = int(np.argmin(promise))
    return float(promise[best_place]), np.asarray(cube_points[best_place])


def _apart(cube: Floats, points: Floats) -> Floats:
    if len(points) == 0:
        return np.full(len(cube), np.inf)
    return np.asarray(np.linalg.norm(cube[:, None] - points[None], axis=2).min(axis=1))


def fit_quadratic(
    points: Floats, scores: Floats, at: Floats, lowered: Floats | None = None
) -> Floats:
    """A parabola through scores by ridge regression, looked at elsewhere, `[m]`.

    Products of two directions enter only where there are points enough for all of them. Points far
    worse than the best weigh less: the parabola is to be right near the best one.

    Args:
        points: `[n, d]`.
        scores: `[n]`.
        at: `[m, d]`.
        lowered: what says which points are near the best, `[n]`; by default the scores.

    >>> line = np.linspace(0.0, 1.0, 5)[:, None]
    >>> found = fit_quadratic(line, (line[:, 0] - 0.3) ** 2, np.array([[0.3], [0.8]]))
    >>> [round(float(value), 2) for value in found]
    [0.0, 0.25]
    """
    dimensions = points.shape[1]
    with_products = len(points) >= (dimensions + 1) * (dimensions + 2) // 2
    # On [0, 1], so that one ridge suits bits per byte as well as nats.
    score_spread = float(np.ptp(scores)) or 1.0
    lowest_score = float(scores.min())
    scaled_scores = (scores - lowest_score) / score_spread
    badness = scores if lowered is None else lowered
    badness = (badness - badness.min()) / (float(np.ptp(badness)) or 1.0)
    # From 1 at the best point to a fifth at the worst.
    point_weights = 1.0 / (1.0 + 4.0 * badness)
    features = _features(points, with_products) * point_weights[:, None]
    # The ridge as rows of the least squares, not of the normal equations, which would square the
    # condition of nearby points. The constant is free: shrinking it would pull the level to 0.
    ridge_rows = np.sqrt(_RIDGE) * np.eye(features.shape[1])
    ridge_rows[0, 0] = 0.0
    left_side = np.concatenate([features, ridge_rows])
    right_side = np.concatenate([scaled_scores * point_weights, np.zeros(features.shape[1])])
    coefficients = np.linalg.lstsq(left_side, right_side, rcond=None)[0]
    return np.asarray(_features(at, with_products) @ coefficients * score_spread + lowest_score)


def _features(points: Floats, crossed: bool) -> Floats:
    centered = points - 0.5
    columns = [np.ones(len(points)), *centered.T, *np.square(centered).T]
    if crossed:
        first, second = np.triu_indices(points.shape[1], 1)
        columns += [centered[:, a] * centered[:, b] for a, b in zip(first, second, strict=True)]
    return np.stack(columns, axis=1)
