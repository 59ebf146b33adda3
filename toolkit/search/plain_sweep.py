"""The plain means between the points that were scored: what a plain mean of the same general loss
would show.

A merge that gives up more of the general ability gains more on the domain, whatever the method, so
two methods can only be compared where they lose the same. Losses of plain means are smooth in α:
document by document, a spline through the points scored in full says what those between would have.

Legend: P points, G places of a grid along α.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from toolkit.search.objective import Losses, Objective

Floats = NDArray[np.float64]
_GRID = np.linspace(0.0, 1.0, 101)
_SLOPE_REACH = 0.05  # of α, to either side
_SURE = 1.645  # a merge's general loss is taken from the lower end of what its documents allow


@dataclass(frozen=True)
class Match:
    """Where the plain sweep loses as much as a merge.

    Attributes:
        alpha: of the plain mean; 0 is the general model.
        bound_set: the general set that decides, None where the specialist loses on none.
        slope: change of the domain figure for each unit lost on that set, along the sweep.
    """

    alpha: float
    bound_set: str | None
    slope: float


class PlainSweep:
    """The sweep as a curve.

    Args:
        objective: of the sets.
        points: losses on all items of plain means by α, the general model (0) and the specialist
            (1) among them.
    """

    def __init__(self, objective: Objective, points: Mapping[float, Losses]) -> None:
        self._objective = objective
        # A sweep may reach beyond either model; the curve is between the two.
        self._alphas = sorted(alpha for alpha in points if 0.0 <= alpha <= 1.0)
        self._points = [points[alpha] for alpha in self._alphas]

    def _weights(self, alphas: Floats) -> Floats:
        """What each point counts at places along α, `[G, P]`."""
        # A spline is linear in what it goes through: that through the unit vectors gives each
        # point's weight, which then serves every set, document by document.
        end_condition = "not-a-knot" if len(self._alphas) > 2 else "natural"
        spline = CubicSpline(self._alphas, np.eye(len(self._alphas)), bc_type=end_condition)
        return np.asarray(spline(alphas), dtype=np.float64)

    @cached_property
    def _weights_along_grid(self) -> Floats:
        return self._weights(_GRID)

    @cached_property
    def lossy_sets(self) -> tuple[str, ...]:
        """General sets on which the specialist is shown to lose: the others cannot be matched."""
        objective, general, specialist = self._objective, self._points[0], self._points[-1]
        return tuple(
            name
            for name in objective.tolerances
            if objective.set_change(name, specialist, general).lower_bound(objective.confidence) > 0
        )

    def _loss_along_grid(self, name: str) -> Floats:
        raced = self._objective.sets[name]
        figures = np.array([raced.figure(losses[name]) for losses in self._points])
        return np.asarray(self._weights_along_grid @ (figures - figures[0]))

    @cached_property
    def _domain_along_grid(self) -> Floats:
        figures = [
            self._objective.domain(self._objective.estimates(losses, [self._points[0]]))
            for losses in self._points
        ]
        return np.asarray(self._weights_along_grid @ np.array(figures))

    def losses_at(self, alpha: float) -> dict[str, Floats]:
        """Losses of all items that the plain mean of this α would have."""
        (point_weights,) = self._weights(np.array([alpha]))
        return {
            name: np.asarray(
                sum(
                    weight * losses[name]
                    for weight, losses in zip(point_weights, self._points, strict=True)
                )
            )
            for name in self._objective.sets
            if all(len(losses.get(name, ())) for losses in self._points)
        }

    def match(self, losses: Losses, guide: Losses | None = None) -> Match | None:
        """Where the sweep loses as much as a merge on general sets.

        Of several sets the one that lets the sweep go farthest decides: a merge that does better on
        the domain than the plain mean there loses no more than that on any of them. Where the
        specialist loses on none, the best plain mean on the domain is meant.

        Args:
            losses: of the merge, as far as they are known.
            guide: see `guide_of`.

        Returns:
            None where a set is not known yet on which the specialist loses.
        """
        general = self._points[0]
        if not self.lossy_sets:
            place = int(np.argmin(self._domain_along_grid))
            return Match(float(_GRID[place]), None, 0.0)
        alpha_by_set = {}
        for name in self.lossy_sets:
            if not len(losses.get(name, ())):
                return None
            raced, set_guide = self._objective.sets[name], (guide or {}).get(name)
            difference = raced.difference(losses[name], general[name], set_guide)
            # From the lower end of what the documents allow: a merge that looks worse than it is
            # would be held against a plain mean that has lost, and so gained, more.
            least_loss = difference.estimate - _SURE * math.sqrt(max(difference.still_open, 0.0))
            alpha_by_set[name] = _last_alpha(self._loss_along_grid(name), least_loss)
        bound_set = max(alpha_by_set, key=lambda name: alpha_by_set[name])
        alpha = alpha_by_set[bound_set]
        return Match(alpha, bound_set, self._slope(alpha, bound_set))

    def _slope(self, alpha: float, name: str) -> float:
        grid_place, reach = round(alpha * (len(_GRID) - 1)), round(_SLOPE_REACH * (len(_GRID) - 1))
        low, high = max(grid_place - reach, 0), min(grid_place + reach, len(_GRID) - 1)
        # Over a stretch, as the spline wiggles between neighbors; where the loss does not rise
        # along it nothing is gained by losing, and no slope is to be made up for.
        domain, loss = self._domain_along_grid, self._loss_along_grid(name)
        loss_rise = float(loss[high] - loss[low])
        return float(domain[high] - domain[low]) / loss_rise if loss_rise > 0.0 else 0.0


def _last_alpha(along_grid: Floats, level: float) -> float:
    """The farthest α at which what is given along the grid is at most a level; 0 where it never is.

    >>> round(_last_alpha(_GRID**2, 0.3025), 3), _last_alpha(_GRID, 2.0), _last_alpha(_GRID, -1.0)
    (0.55, 1.0, 0.0)
    """
    places_within = np.flatnonzero(along_grid <= level)
    if not len(places_within):
        return 0.0
    last_place = int(places_within[-1])
    if last_place == len(_GRID) - 1:
        return 1.0
    # The next place is beyond the level, so the crossing lies between the two: on their line.
    part = (level - along_grid[last_place]) / (along_grid[last_place + 1] - along_grid[last_place])
    return float(_GRID[last_place] + part * (_GRID[last_place + 1] - _GRID[last_place]))
