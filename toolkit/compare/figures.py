"""From losses of all ways, seeds and items to figures with intervals, and to the line they face.

Every figure is a mean over items and seeds, or a ratio of such means. Its interval is that of its
linear part: how the figure moves as the losses do, item by item and seed by seed.

Legend: S seeds, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from toolkit.compare.results import Standing
from toolkit.evaluate.sets import EvaluationSet
from toolkit.search.space import GENERAL
from toolkit.statistics.interval import Interval
from toolkit.statistics.over_seeds import widen_by_seeds
from toolkit.statistics.paired import PairedChanges

Floats = NDArray[np.float64]
# Differences of bits per byte are of the order of 1e-3; floating point errs by 1e-15 or so.
_EXACT = 1e-9
"""A plain mean of the line lies on it by definition, whatever rounding makes of it."""

Coefficients = Mapping[str, float]
"""How much of each model's loss enters; they add up to 0, so that what is hard for all cancels."""


@dataclass(frozen=True)
class LinePlace:
    """Where the line of plain merges loses as much as a way.

    Attributes:
        mixture: models of the line and their shares, 1 together: two neighbors, or one end.
        kept: gain that the line keeps there.
        slope: gain kept for each unit of loss, along the line.
    """

    mixture: Coefficients
    kept: float
    slope: float


@dataclass(frozen=True)
class ScoredWays:
    """Losses of all models that are compared, on the same items for every seed.

    Attributes:
        sets: the test sets.
        weights: weights of domain sets that are not 1.
        losses: losses by model and set, `[S, N]`; `general` is among the models.
        reference: model whose gain is 100 %, the upper end of the line.
        line: models of the line by α, without its ends.
        confidence: two-sided, of every interval by itself.
    """

    sets: Sequence[EvaluationSet]
    weights: Mapping[str, float]
    losses: Mapping[str, Mapping[str, Floats]]
    reference: str
    line: Mapping[float, str]
    confidence: float = 0.95

    @cached_property
    def _by_name(self) -> dict[str, EvaluationSet]:
        return {one.name: one for one in self.sets}

    @cached_property
    def _domain_shares(self) -> dict[str, float]:
        domain_weights = {
            one.name: self.weights.get(one.name, 1.0) for one in self.sets if one.role == "domain"
        }
        return {name: w / sum(domain_weights.values()) for name, w in domain_weights.items()}

    def _interval(
        self, estimate: float, parts: Mapping[str, tuple[float, Coefficients]]
    ) -> Interval:
        """The interval of a figure, over items and seeds.

        Args:
            estimate: the figure.
            parts: by set, a factor and the models whose losses it is of: the figure's linear part.
        """
        changes, seed_values = [], np.zeros(self.num_seeds)
        for name, (factor, coefficients) in parts.items():
            if factor == 0.0:
                continue
            # The same items under every model: what makes an item hard for all of them cancels
            # here, before anything is averaged.
            columns = sum(c * self.losses[model][name] for model, c in coefficients.items())
            seed_values += factor * self._figures(name, np.asarray(columns))
            item_means = np.asarray(columns).mean(axis=0)
            # Items scatter about their mean over seeds; the scatter between seeds comes on top
            # below.
            changes.append(self._by_name[name].changes(item_means, weight=factor))
        # Weights are factors with signs here and do not add up to 1, so they must not be divided
        # by their sum.
        over_items = PairedChanges(changes, are_factors=True).combination([1.0])
        spread = over_items.interval(self.confidence)
        # The linear part of a ratio is 0 at its estimate, which is then moved to where it belongs.
        moved = estimate - spread.estimate
        placed = Interval(estimate, spread.low + moved, spread.high + moved)
        return widen_by_seeds(placed, seed_values.tolist(), self.confidence)

    def _figures(self, name: str, columns: Floats) -> Floats:
        """Of each seed, `[S]`."""
        return np.array([self._by_name[name].figure(row) for row in columns])

    @property
    def num_seeds(self) -> int:
        return len(next(iter(self.losses[GENERAL].values())))

    # Changes of the loss against the general model, below zero where something is gained.

    def domain_changes(self, model: str) -> Floats:
        """Of each seed, `[S]`."""
        changes = np.zeros(self.num_seeds)
        for name, share in self._domain_shares.items():
            changes += share * self.set_changes(model, name)
        return changes

    def set_changes(self, model: str, name: str) -> Floats:
        """Of each seed, `[S]`."""
        return self._figures(name, self.losses[model][name] - self.losses[GENERAL][name])

    def domain_change(self, model: str) -> Interval:
        """Change of the domain figure."""
        change = {model: 1.0, GENERAL: -1.0}
        parts = {name: (share, change) for name, share in self._domain_shares.items()}
        return self._interval(float(self.domain_changes(model).mean()), parts)

    def set_change(self, model: str, name: str) -> Interval:
        """Change of one set's figure."""
        estimate = float(self.set_changes(model, name).mean())
        return self._interval(estimate, {name: (1.0, {model: 1.0, GENERAL: -1.0})})

    # Fractions of the reference's gain.

    @cached_property
    def _reference_change(self) -> float:
        return float(self.domain_changes(self.reference).mean())

    @cached_property
    def shows_gain(self) -> bool:
        """Whether the reference surely gains: a fraction of what may be nothing has no meaning."""
        # By the whole interval: a fraction of a gain near zero could be any number.
        return self.domain_change(self.reference).high < 0.0

    def kept(self, model: str) -> float:
        """Fraction of the reference's gain, without an interval."""
        return float(self.domain_changes(model).mean()) / self._reference_change

    def gain_kept(self, model: str) -> Interval | None:
        """Fraction of the reference's gain; None where that shows none."""
        if not self.shows_gain:
            return None
        # The general model is the zero of the scale, so what is above and below the line of the
        # fraction both move with it.
        return self._interval(self.kept(model), self._kept_parts({model: 1.0, GENERAL: -1.0}))

    def seeds_kept(self, model: str) -> list[float | None]:
        """Of each seed, as a fraction of that seed's own reference."""
        # One seed's reference may have lost although their mean gained: of that no fraction is
        # taken.
        changes = zip(self.domain_changes(model), self.domain_changes(self.reference), strict=True)
        return [
            float(own / whole) if self.shows_gain and whole < 0 else None for own, whole in changes
        ]

    def _kept_parts(self, coefficients: Coefficients) -> dict[str, tuple[float, Coefficients]]:
        """Linear part of a fraction of the reference's gain: how it moves with what is above the
        line of the fraction, and, by as much as it is itself, with what is below."""
        # The derivative of a ratio a / b with respect to both: (da - (a / b) db) / b.
        fraction = (
            sum(c * float(self.domain_changes(model).mean()) for model, c in coefficients.items())
            / self._reference_change
        )
        moved = dict(coefficients)
        moved[self.reference] = moved.get(self.reference, 0.0) - fraction
        moved[GENERAL] = moved.get(GENERAL, 0.0) + fraction
        return {
            name: (share / self._reference_change, moved)
            for name, share in self._domain_shares.items()
        }

    # The line of plain merges.

    def has_line(self, name: str) -> bool:
        """Whether the reference specialist surely loses on a set, over items and seeds."""
        # Where the reference loses nothing, a plain mean trades nothing, and the slope below would
        # divide by what may be zero.
        return self.shows_gain and self.set_change(self.reference, name).low > 0.0

    def place_on_line(self, name: str, loss: float) -> LinePlace:
        """Where the line loses as much on a set: the farthest α at which its loss is at most that.

        What loses less than the general model is held against the general model, what loses more
        than the specialist against the specialist; both with the slope of the whole line.
        """
        models = [GENERAL, *(self.line[alpha] for alpha in sorted(self.line)), self.reference]
        line_losses = [float(self.set_changes(model, name).mean()) for model in models]
        line_kept = [self.kept(model) for model in models]
        whole_slope = line_kept[-1] / line_losses[-1]
        if loss >= line_losses[-1]:
            return LinePlace({models[-1]: 1.0}, line_kept[-1], whole_slope)
        # Losses need not rise along the line: the farthest point is the best plain mean at that
        # cost, which is the one to beat.
        below = [place for place, line_loss in enumerate(line_losses) if line_loss <= loss]
        if not below:
            return LinePlace({GENERAL: 1.0}, 0.0, whole_slope)
        # The next point loses more than this loss, and the left one does not, so the step is above
        # zero.
        left, right = below[-1], below[-1] + 1
        step = line_losses[right] - line_losses[left]
        part = (loss - line_losses[left]) / step
        rise = line_kept[right] - line_kept[left]
        mixture = {models[left]: 1.0 - part, models[right]: part}
        return LinePlace(mixture, line_kept[left] + part * rise, rise / step)

    def distance(self, model: str, name: str) -> Interval:
        """Gain kept minus that of the line at the same loss on a set; above 0 is above the line.

        As a fraction of the reference's gain. An error of the loss, of the way or of the line,
        moves the place on the line, and so the distance by the line's slope there.
        """
        place = self.place_on_line(name, float(self.set_changes(model, name).mean()))
        # The place depends on measured losses itself. Both its sides move, which the slope turns
        # into gain: left out, the interval would take the line for known.
        apart = {line_model: -share for line_model, share in place.mixture.items()}
        apart[model] = apart.get(model, 0.0) + 1.0
        parts = {**self._kept_parts(apart), name: (-place.slope, apart)}
        return self._interval(self.kept(model) - place.kept, parts)


def standing_of(distance: Interval) -> Standing:
    """
    >>> standing_of(Interval(0.2, 0.1, 0.3)), standing_of(Interval(0.2, -0.1, 0.5))
    ('above', 'on')
    """
    return "above" if distance.low > _EXACT else "below" if distance.high < -_EXACT else "on"
