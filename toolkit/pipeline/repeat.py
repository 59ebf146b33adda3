"""A whole run repeated over seeds: what differs between seeds, beside what differs by documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from toolkit.data.config import depends_on_seed
from toolkit.errors import ConfigError
from toolkit.pipeline.run import Run
from toolkit.progress import console, say
from toolkit.recipe.model import depends_on_seed as model_depends_on_seed
from toolkit.recipe.schema import Recipe
from toolkit.stage import load_json, write_json
from toolkit.statistics.interval import deviation_interval, normal_quantile

_NORMAL_WIDTH = 2.0 * normal_quantile(0.975)
"""Standard errors from end to end of a 95 % interval."""


def run_repeat(run: Run, num_seeds: int, *, same_documents: bool = False) -> dict[str, Any]:
    """Make a recipe's merge once per seed, and compare the outcomes.

    The first seed is the recipe's own and uses its run as it stands; the others follow it and stand
    in `seeds/` below it. What the seed does not change is made once, in the first seed's run: the
    general model, and the documents where their splits do not depend on it. Each is a run like any
    other: what is complete is not made again.

    Args:
        run: of the recipe.
        num_seeds: 2 at least.
        same_documents: whether all seeds train, tune and test on the first one's documents, so that
            what differs between seeds is training and search alone.

    Returns:
        What is written to `seeds/repeat.json`.
    """
    from toolkit.pipeline.stages import ensure_merge

    same = _are_documents_the_same(run.recipe, asked=same_documents)
    say(f"documents: {_WORDS[same]}")
    results: dict[int, Mapping[str, Any]] = {}
    for number in range(num_seeds):
        one = of_seed(run, number, same_documents=same)
        say(f"seed {one.recipe.seed} ({number + 1} of {num_seeds}): {one.root}")
        results[one.recipe.seed] = load_json(ensure_merge(one) / "report.json")
    found = compare_seeds(results, same_documents=same)
    folder = run.root / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "repeat.json", found)
    show_seeds(found)
    say(f"Written to {folder / 'repeat.json'}.")
    return found


def _are_documents_the_same(recipe: Recipe, *, asked: bool) -> bool:
    """
    Raises:
        ConfigError: they are asked for, and cannot be: each seed has a tokenizer of its own.
    """
    learned = recipe.tokenizer is not None and recipe.tokenizer.new_tokens is not None
    if learned and model_depends_on_seed(recipe.model):
        if asked:
            raise ConfigError(
                "--same-documents: tokenizer.new_tokens learns tokens for a general model that "
                "each seed makes anew (model.scratch or model.moe), so each has documents in "
                "tokens of its own; leave the flag out, or take a general model that stands."
            )
        return False
    return asked or not depends_on_seed(recipe.data)


_WORDS = {
    True: "the same for every seed; what differs between seeds is training and search",
    False: "split anew for each seed, so what differs between seeds holds what differs between "
    "documents; --same-documents keeps the first seed's",
}


def of_seed(run: Run, number: int, *, same_documents: bool = False) -> Run:
    """The run of a later seed, in a folder of its own; of number 0 the run itself."""
    if number == 0:
        return run
    seed = run.recipe.seed + number
    # Workers beside this process would open the recipe by its name, with its own seed.
    search = run.recipe.search.model_copy(update={"workers": 1})
    recipe = run.recipe.model_copy(update={"seed": seed, "search": search})
    return replace(
        run,
        recipe=recipe,
        root=run.root / "seeds" / str(seed),
        lender=run,
        same_documents=same_documents,
    )


def compare_seeds(
    results: Mapping[int, Mapping[str, Any]], *, same_documents: bool
) -> dict[str, Any]:
    """Figures of every seed, and their scatter beside that over documents.

    Args:
        results: of each seed's merge stage.
        same_documents: whether all seeds have the same.

    Returns:
        `seeds`: chosen merge and figures by seed; `figures`: of each the mean, the standard
        deviation between seeds, the mean standard error over documents, and the seed's own standard
        deviation (where documents are split anew, what is left of the first without the second);
        what not every seed has is left out.
    """
    seeds = {str(seed): _figures(one) for seed, one in results.items()}
    names = [
        name
        for name in next(iter(seeds.values()))
        if all(name in figures for figures in seeds.values())
    ]
    return {
        "same_documents": same_documents,
        "seeds": {
            str(seed): {"chosen": one["chosen"], "figures": seeds[str(seed)]}
            for seed, one in results.items()
        },
        "figures": {
            name: _scatter([figures[name] for figures in seeds.values()], same_documents)
            for name in names
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


def _scatter(figures: Sequence[Mapping[str, float]], same_documents: bool) -> dict[str, float]:
    estimates = [figure["estimate"] for figure in figures]
    error = statistics.fmean((f["high"] - f["low"]) / _NORMAL_WIDTH for f in figures)
    between = statistics.stdev(estimates)
    own = between if same_documents else math.sqrt(max(between**2 - error**2, 0.0))
    return {
        "mean": statistics.fmean(estimates),
        "between_seeds": between,
        "over_documents": error,
        "of_the_seed": own,
    }


def show_seeds(found: Mapping[str, Any]) -> None:
    """Print what `compare_seeds` found."""
    seeds, same = found["seeds"], found["same_documents"]
    table = Table(title="one column per seed; standard deviation between seeds, error over items")
    titles = ("", *(f"seed {seed}" for seed in seeds), "mean", "between seeds", "over items")
    for title in (*titles, *(() if same else ("of the seed",))):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("chosen", *(one["chosen"] for one in seeds.values()))
    for name, row in found["figures"].items():
        own = [f"{one['figures'][name]['estimate']:+.4f}" for one in seeds.values()]
        scatter = [f"{row[key]:.4f}" for key in ("between_seeds", "over_documents")]
        scatter += [] if same else [f"{row['of_the_seed']:.4f}"]
        table.add_row(name, *own, f"{row['mean']:+.4f}", *scatter)
    console.print(table, width=max(console.width, 100))
    reach = deviation_interval(len(seeds))
    num_choices = len({one["chosen"] for one in seeds.values()})
    say(f"documents: {_WORDS[same]}")
    say(
        f"{len(seeds)} seeds chose {num_choices} different "
        f"{'merge' if num_choices == 1 else 'merges'}; the true standard deviation between seeds "
        f"lies within {reach.low:.2g} to {reach.high:.2g} times the one shown (95 %)"
    )
