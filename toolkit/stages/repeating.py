"""A whole run repeated over seeds: what differs between seeds, beside what differs by documents."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from toolkit.manifest import load_json, write_json
from toolkit.progress import console, say
from toolkit.stages.opening import Run

_NORMAL_WIDTH = 2 * 1.959964
"""Standard errors from end to end of a 95 % interval."""


def run_repeat(run: Run, num_seeds: int) -> dict[str, Any]:
    """Make a recipe's merge once per seed, and compare the outcomes.

    The first seed is the recipe's own and uses its run as it stands; the others follow it and stand
    in `seeds/` below it. Each is a run like any other: what is complete is not made again.

    Args:
        run: of the recipe.
        num_seeds: 2 at least.

    Returns:
        What is written to `seeds/repeat.json`.
    """
    from toolkit.stages.chain import ensure_merge

    results: dict[int, Mapping[str, Any]] = {}
    for number in range(num_seeds):
        one = of_seed(run, number)
        say(f"seed {one.recipe.seed} ({number + 1} of {num_seeds}): {one.root}")
        results[one.recipe.seed] = load_json(ensure_merge(one) / "report.json")
    found = compare_seeds(results)
    folder = run.root / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "repeat.json", found)
    show_seeds(found)
    say(f"Written to {folder / 'repeat.json'}.")
    return found


def of_seed(run: Run, number: int) -> Run:
    """The run of a later seed, in a folder of its own; of number 0 the run itself."""
    if number == 0:
        return run
    seed = run.recipe.seed + number
    # Workers beside this process would open the recipe by its name, with its own seed.
    search = run.recipe.search.model_copy(update={"workers": 1})
    recipe = run.recipe.model_copy(update={"seed": seed, "search": search})
    runs = run.root / "seeds"
    return replace(run, recipe=recipe, root=runs / str(seed), runs=runs)


def compare_seeds(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of every seed, and their scatter beside that over documents.

    Args:
        results: of each seed's merge stage.

    Returns:
        `seeds`: chosen merge and figures by seed; `figures`: of each the mean, the standard
        deviation between seeds and the mean standard error over documents; what not every seed has
        is left out.
    """
    seeds = {str(seed): _figures(one) for seed, one in results.items()}
    names = [
        name
        for name in next(iter(seeds.values()))
        if all(name in figures for figures in seeds.values())
    ]
    return {
        "seeds": {
            str(seed): {"chosen": one["chosen"], "figures": seeds[str(seed)]}
            for seed, one in results.items()
        },
        "figures": {
            name: _scatter([figures[name] for figures in seeds.values()]) for name in names
        },
    }


def _figures(results: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    merge, specialist = (results["models"][name] for name in ("merge", "specialist"))
    found = {"domain, change": merge["domain_change"]}
    for title, row in (("", merge), (", specialist", specialist)):
        for name, change in row.get("set_changes", {}).items():
            found[f"{name}, change{title}"] = change
    if results.get("gain_kept"):
        found["gain kept"] = results["gain_kept"]
    for name, share in (results.get("sets_recovered") or {}).items():
        if share:
            found[f"{name}, recovered"] = share
    return found


def _scatter(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    estimates = [figure["estimate"] for figure in figures]
    errors = [(figure["high"] - figure["low"]) / _NORMAL_WIDTH for figure in figures]
    return {
        "mean": statistics.fmean(estimates),
        "between_seeds": statistics.stdev(estimates) if len(estimates) > 1 else 0.0,
        "over_documents": statistics.fmean(errors),
    }


def show_seeds(found: Mapping[str, Any]) -> None:
    """Print what `compare_seeds` found."""
    seeds = found["seeds"]
    table = Table(title="one column per seed; standard deviation between seeds, error over items")
    for title in ("", *(f"seed {seed}" for seed in seeds), "mean", "seeds", "items"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("chosen", *(one["chosen"] for one in seeds.values()), "", "", "")
    for name, row in found["figures"].items():
        own = [f"{one['figures'][name]['estimate']:+.4f}" for one in seeds.values()]
        scatter = (f"{row['between_seeds']:.4f}", f"{row['over_documents']:.4f}")
        table.add_row(name, *own, f"{row['mean']:+.4f}", *scatter)
    console.print(table, width=max(console.width, 100))
