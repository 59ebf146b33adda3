"""Runs over seeds: folders apart, and the seed's share in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.outcomes import interval, make_results
from toolkit.recipe import Recipe
from toolkit.stages.opening import Run
from toolkit.stages.repeating import compare_seeds, of_seed, show_seeds


def test_scatter_between_seeds_stands_beside_that_over_items(capsys: pytest.CaptureFixture[str]):
    results = {}
    for seed, gain in ((0, -0.10), (1, -0.12), (2, -0.14)):
        results[seed] = make_results(gain_kept=interval(0.9, 0.0196))
        results[seed]["models"]["merge"]["domain_change"] = interval(gain, 0.0196)
    results[2]["gain_kept"] = None  # one seed has nothing to keep: no mean of the others
    found = compare_seeds(results)
    assert found["figures"]["domain, change"] == pytest.approx(
        {"mean": -0.12, "between_seeds": 0.02, "over_documents": 0.01}, rel=1e-3
    )
    assert "gain kept" not in found["figures"]
    assert found["seeds"]["1"]["chosen"] == results[1]["chosen"]
    show_seeds(found)
    assert "-0.1200" in capsys.readouterr().out


def test_each_seed_has_a_folder_of_its_own(tmp_path: Path):
    recipe = Recipe.model_construct(seed=7, search=Recipe.model_fields["search"].get_default())
    run = Run("letters", recipe, tmp_path / "letters", runs=tmp_path)
    assert of_seed(run, 0) is run
    second = of_seed(run, 1)
    assert second.recipe.seed == 8
    assert second.root == tmp_path / "letters" / "seeds" / "8"
    assert second.recipe.search.workers == 1
    assert run.recipe.seed == 7
