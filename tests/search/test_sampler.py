"""Samplers: each finds the hollow of a known landscape, and the same way to it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.fakes import space
from toolkit.search.config import SearchSection
from toolkit.search.sampler import Tried, grid_points, next_proposal
from toolkit.search.space import read_space
from toolkit.search.surrogate import Arm, fit_quadratic, propose


def two_numbers() -> Any:
    settings = {"weight": {"search": [0.0, 1.0]}, "density": {"search": {"range": [0.1, 1.0]}}}
    given = {
        "merge_method": "ties",
        "base_model": "general",
        "models": [{"model": "specialist", "parameters": settings}],
    }
    return read_space("ties", given, "ties.yaml")


def run(sampler: str, spaces: list[Any], landscape: Any, steps: int) -> list[Tried]:
    section = SearchSection(sampler=sampler, sweep=(), num_trials=steps + 2)
    tried: dict[str, list[Tried]] = {item.name: [] for item in spaces}
    order = []
    for _ in range(steps):
        found = next_proposal(spaces, tried, section, 11)
        item = Tried(found.values, landscape(found.space, found.values), found.state)
        tried[found.space].append(item)
        order.append(item)
    return order


def hollow(name: str, values: Any) -> tuple[float, float, float]:
    """Lowest at weight 0.7, density 0.4; slerp-like files are worse throughout."""
    domain = (values["weight"] - 0.7) ** 2 + 0.5 * (values["density"] - 0.4) ** 2
    return domain, values["weight"], 0.0


@pytest.mark.parametrize(
    ("sampler", "steps", "near"),
    [
        ("quadratic", 12, 0.002),
        ("tpe", 30, 0.03),
        ("cmaes", 40, 0.01),
        ("gp", 16, 0.003),
        ("nsga2", 40, 0.05),
        ("nsga3", 40, 0.05),
    ],
)
def test_each_finds_the_hollow_and_repeats_itself(sampler: str, steps: int, near: float):
    found = run(sampler, [two_numbers()], hollow, steps)
    assert min(item.figures[0] for item in found if item.figures) <= near
    again = run(sampler, [two_numbers()], hollow, steps)
    assert [item.values for item in again] == [item.values for item in found]


def test_a_loss_beyond_the_tolerance_is_avoided():
    def landscape(name: str, values: Any) -> tuple[float, float, float]:
        domain, general, _ = hollow(name, values)
        return domain, general, values["weight"] - 0.5

    found = run("quadratic", [two_numbers()], landscape, 14)
    best = min(found, key=lambda item: item.score)
    # The hollow is at 0.7, so the best is where the tolerance ends.
    assert best.values["weight"] == pytest.approx(0.5, abs=0.01)
    assert best.values["density"] == pytest.approx(0.4, abs=0.1)


def test_the_quadratic_goes_where_it_is_best_but_looks_everywhere_first():
    def landscape(name: str, values: Any) -> tuple[float, float, float]:
        if name == "linear":
            return 1.0 + (values["alpha"] - 0.5) ** 2, 0.0, 0.0
        return hollow(name, values)

    section = SearchSection(sampler="quadratic", sweep=(), num_trials=20)
    spaces = [space("linear"), two_numbers()]
    tried: dict[str, list[Tried]] = {"linear": [], "ties": []}
    for _ in range(16):
        found = next_proposal(spaces, tried, section, 1)
        tried[found.space].append(
            Tried(found.values, landscape(found.space, found.values), found.state)
        )
    assert len(tried["linear"]) == 3  # one and two for its one direction
    assert len(tried["ties"]) == 13


def test_choices_are_searched_each_by_itself():
    given = {
        "merge_method": {"search": {"choice": ["ties", "dare_ties"]}},
        "base_model": "general",
        "models": [{"model": "specialist", "parameters": {"weight": {"search": [0.0, 1.0]}}}],
    }
    both = read_space("m", given, "m.yaml")

    def landscape(name: str, values: Any) -> tuple[float, float, float]:
        worse = 0.3 if values["merge_method"] == "ties" else 0.0
        return worse + (values["weight"] - 0.3) ** 2, 0.0, 0.0

    found = run("quadratic", [both], landscape, 12)
    methods = [item.values["merge_method"] for item in found]
    assert methods.count("ties") == 3
    assert min(item.score for item in found) < 0.002
    by_tpe = run("tpe", [both], landscape, 10)
    assert {item.values["merge_method"] for item in by_tpe} == {"ties", "dare_ties"}


def test_grids_are_every_combination():
    points = grid_points(two_numbers(), 3)
    assert len(points) == 9
    assert points[0] == {"weight": 0.0, "density": 0.1}
    assert points[-1] == {"weight": 1.0, "density": 1.0}


def test_the_first_look_is_spread_out():
    arm = Arm(np.zeros((0, 2)), np.zeros(0), np.zeros(0))
    points = []
    for _ in range(arm.num_first_points):
        _, point = propose([arm], 0)
        points.append(point)
        arm = Arm(np.array(points), *np.full((2, len(points)), np.nan))
    assert points[0].tolist() == [0.5, 0.5]
    apart = np.linalg.norm(np.array(points)[:, None] - np.array(points)[None], axis=2)
    assert apart[np.triu_indices(5, 1)].min() > 0.4


def test_a_parabola_is_found_again_with_its_products():
    chance = np.random.default_rng(0)
    points, at = chance.random((12, 2)), 0.1 + 0.8 * chance.random((5, 2))

    def true(p: Any) -> Any:
        return 1.0 + (p[:, 0] - 0.3) ** 2 + p[:, 0] * p[:, 1]

    assert np.abs(fit_quadratic(points, true(points), at) - true(at)).max() < 0.02
