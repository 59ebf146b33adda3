"""Figures over items and seeds on made-up losses whose truth is known, and the line's coverage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

import numpy as np
import pytest

from toolkit.compare.figures import ScoredWays, standing_of
from toolkit.evaluate.sets import EvaluationSet
from toolkit.statistics.interval import Interval
from toolkit.statistics.over_seeds import widen_by_seeds

LINE = {0.25: "line 0.25", 0.5: "line 0.5", 0.75: "line 0.75"}
ALPHAS = {"general": 0.0, **{name: alpha for alpha, name in LINE.items()}, "plain": 1.0}


def make_set(name: str, role: str, num_items: int) -> EvaluationSet:
    ids = [f"{name}-{number}" for number in range(num_items)]
    return EvaluationSet(
        name,
        role,  # type: ignore[arg-type]
        "bits per byte",
        ids,
        ids,
        [1.0] * num_items,
        [1] * num_items,
        name,
        lambda *_: [],
    )


def score(
    gains: Mapping[str, float],
    losses: Mapping[str, float],
    *,
    num_seeds: int = 3,
    num_items: int = 40,
    between_items: float = 0.0,
    between_seeds: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> ScoredWays:
    """Models with these true gains on one set and losses on the other.

    Items are hard by themselves, which cancels; each changes by its own share of a model's change
    (`between_items`), each seed by its own (`between_seeds`), and each loss by noise.
    """
    chance = np.random.default_rng(seed)
    sets = (make_set("domain", "domain", num_items), make_set("kept", "general", num_items))
    by_model: dict[str, dict[str, np.ndarray]] = {model: {} for model in gains}
    for one, changes in zip(sets, ({m: -g for m, g in gains.items()}, losses), strict=True):
        hard = 1.0 + 0.3 * chance.standard_normal(num_items)
        item_shares = 1.0 + between_items * (chance.exponential(size=num_items) - 1.0)
        # A seed's specialist goes into all of its merges, so they move together.
        common = 1.0 + between_seeds * chance.standard_normal((num_seeds, 1))
        for model, change in changes.items():
            own = 1.0 + between_seeds * chance.standard_normal((num_seeds, 1))
            of_seed = common if model in ALPHAS else own
            rows = hard + change * of_seed * item_shares
            scatter = noise * abs(change) * chance.standard_normal((num_seeds, num_items))
            by_model[model][one.name] = rows + scatter
    by_model["general"] = {
        name: np.repeat(values[:1], num_seeds, axis=0)
        for name, values in by_model["general"].items()
    }
    return ScoredWays(sets, {}, by_model, reference="plain", line=LINE)


def curve(alpha: float) -> tuple[float, float]:
    """Gain and loss of a plain mean: the first steps cost least."""
    return 0.2 * (1.0 - (1.0 - alpha) ** 2), 0.3 * alpha**2


def worlds(gain: float, loss: float) -> tuple[dict[str, float], dict[str, float]]:
    points = {name: curve(alpha) for name, alpha in ALPHAS.items()}
    gains = {**{name: g for name, (g, _) in points.items()}, "way": gain}
    return gains, {**{name: x for name, (_, x) in points.items()}, "way": loss}


def true_distance(gain: float, loss: float) -> float:
    """By linear interpolation between the true points of the line."""
    points = [curve(alpha) for alpha in (0.0, *LINE, 1.0)]
    line = float(np.interp(loss, [x for _, x in points], [g for g, _ in points]))
    return (gain - line) / 0.2


def test_without_scatter_figures_are_the_truth():
    scored = score(*worlds(0.19, 0.1))
    assert astuple(scored.domain_change("way")) == pytest.approx([-0.19] * 3)
    kept = scored.gain_kept("way")
    assert kept is not None
    assert kept.estimate == pytest.approx(0.95)
    # 0.1 lies between α 0.5 (0.075, 75 %) and 0.75 (0.16875, 93.75 %): 80 % on the line
    distance = scored.distance("way", "kept")
    assert distance.estimate == pytest.approx(0.15)
    assert distance.low == pytest.approx(0.15)
    assert standing_of(distance) == "above"
    assert scored.seeds_kept("way") == pytest.approx([0.95] * 3)
    whole = scored.gain_kept("plain")
    assert whole is not None
    assert astuple(whole) == pytest.approx([1.0] * 3)


def test_a_point_of_the_line_is_on_it():
    scored = score(*worlds(*curve(0.5)), between_items=0.5, noise=0.2)
    for model in ("line 0.5", "plain"):
        distance = scored.distance(model, "kept")
        assert astuple(distance) == pytest.approx([0.0] * 3, abs=1e-9)
        assert standing_of(distance) == "on"


def test_beyond_the_ends_the_models_themselves_are_the_line():
    gains_better = score(*worlds(0.1, -0.05))
    assert gains_better.place_on_line("kept", -0.05).mixture == {"general": 1.0}
    assert gains_better.distance("way", "kept").estimate == pytest.approx(0.5)
    loses_more = score(*worlds(0.2, 0.5))
    assert loses_more.place_on_line("kept", 0.5).mixture == {"plain": 1.0}
    assert loses_more.distance("way", "kept").estimate == pytest.approx(0.0)


def test_the_farthest_plain_mean_that_loses_no_more_is_the_line():
    gains, losses = worlds(0.19, 0.1)
    losses |= {"line 0.5": 0.12, "line 0.75": 0.09}  # down again: α 0.75 keeps more for less
    place = score(gains, losses).place_on_line("kept", 0.1)
    assert set(place.mixture) == {"line 0.75", "plain"}


def test_no_line_where_the_reference_loses_nothing_and_no_share_of_no_gain():
    gains, losses = worlds(0.1, 0.1)
    assert not score(gains, {**losses, "plain": -0.01}).has_line("kept")
    nothing = score({**gains, "plain": 0.0}, losses)
    assert not nothing.shows_gain
    assert nothing.gain_kept("way") is None
    assert nothing.seeds_kept("way") == [None] * 3


def test_seeds_that_differ_widen_an_interval_and_one_seed_does_not():
    over_items = Interval(0.5, 0.4, 0.7)
    assert widen_by_seeds(over_items, [0.5]) == over_items
    wide = widen_by_seeds(over_items, [0.3, 0.5, 0.7])
    assert wide.high - 0.5 > 0.5 - wide.low > 0.49  # 4.30 * 0.2 / √3 and the items' 0.1 or 0.2
    alike = score(*worlds(0.15, 0.1), between_items=0.5)
    apart = score(*worlds(0.15, 0.1), between_items=0.5, between_seeds=0.1)
    one = score(*worlds(0.15, 0.1), between_items=0.5, between_seeds=0.1, num_seeds=1)

    def width(scored: ScoredWays) -> float:
        kept = scored.gain_kept("way")
        assert kept is not None
        return kept.high - kept.low

    assert width(apart) > 2.0 * width(alike)
    assert width(one) < width(apart)


@pytest.mark.parametrize(
    ("gain", "loss", "between_seeds"),
    [(0.16, 0.12, 0.0), (0.17, 0.06, 0.05), (0.12, 0.2, 0.1)],
    ids=["items alone", "items and seeds", "seeds above all"],
)
def test_intervals_cover_the_truth_as_often_as_they_say(
    gain: float, loss: float, between_seeds: float
):
    num_studies, covered = 250, {"distance": 0, "kept": 0, "change": 0}
    for number in range(num_studies):
        scored = score(
            *worlds(gain, loss),
            between_items=0.4,
            between_seeds=between_seeds,
            noise=0.3,
            seed=number,
        )
        distance, kept = scored.distance("way", "kept"), scored.gain_kept("way")
        change = scored.set_change("way", "kept")
        assert kept is not None
        covered["distance"] += distance.low <= true_distance(gain, loss) <= distance.high
        covered["kept"] += kept.low <= gain / 0.2 <= kept.high
        covered["change"] += change.low <= loss <= change.high
    # 95 % is said: 250 studies show 0.95 with an error of 0.014
    assert {name: count / num_studies >= 0.92 for name, count in covered.items()} == dict.fromkeys(
        covered, True
    ), covered
