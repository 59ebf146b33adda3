"""A whole run repeated over seeds: what differs between seeds, beside what differs by documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from toolkit.data.config import depends_on_seed
from toolkit.errors import ConfigError
from toolkit.pipeline.run import Run
from toolkit.progress import say, say_columns
from toolkit.recipe.model import depends_on_seed as model_depends_on_seed
from toolkit.recipe.schema import Recipe
from toolkit.search.config import SearchSection
from toolkit.section import replace_values
from toolkit.select.results import MergeResults, ResultPart, read_results
from toolkit.stage import write_json
from toolkit.statistics.interval import (
    Interval,
    decimals,
    deviation_interval,
    student_quantile,
)


class SeedOutcome(ResultPart):
    """What the merge stage of one seed chose, and its figures."""

    chosen: str
    figures: dict[str, Interval]


class SeedScatter(ResultPart):
    """How one figure scatters between seeds."""

    mean: float

    between_seeds: float
    """Standard deviation between seeds."""

    over_documents: float
    """Mean standard error over documents."""

    of_the_seed: float
    """The seed's own standard deviation: where documents are split anew, what is left of the one
    between seeds without the error over documents."""


class SeedComparison(ResultPart):
    """Outcomes of several seeds, and their scatter beside that over documents: what
    `seeds/repeat.json` holds."""

    same_documents: bool
    """Whether all seeds have the same documents."""

    seeds: dict[str, SeedOutcome]

    figures: dict[str, SeedScatter]
    """Scatter by figure; what not every seed has is left out."""


def run_repeat(run: Run, num_seeds: int, *, same_documents: bool = False) -> SeedComparison:
    """Make a recipe's merge once per seed, and compare the outcomes.

    The first seed is the recipe's own and uses its run as it stands; the others follow it and stand
    in `seeds/` below it. What the seed does not change is made once, in the first seed's run: the
    general model, and the documents where their splits do not depend on it. Each is a run like any
    other: what is complete is not made again.

    Args:
        run: run of the recipe.
        num_seeds: number of seeds, 2 at least.
        same_documents: whether all seeds train, tune and test on the first one's documents, so that
            what differs between seeds is training and search alone.

    Returns:
        The comparison that is written to `seeds/repeat.json`.
    """
    from toolkit.pipeline.stages import ensure_merge

    same = are_documents_the_same(run.recipe, asked=same_documents)
    trains = run.recipe.trains
    say(f"documents: {_document_words(same, trains)}")
    results: dict[int, MergeResults] = {}
    for number in range(num_seeds):
        one = of_seed(run, number, same_documents=same)
        say(f"seed {one.recipe.seed} ({number + 1} of {num_seeds}): {one.root}")
        results[one.recipe.seed] = read_results(ensure_merge(one))
    comparison = compare_seeds(results, same_documents=same)
    folder = run.root / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "repeat.json", comparison.model_dump(mode="json"))
    show_seeds(comparison, trains=trains)
    say(f"Written to {folder / 'repeat.json'}.")
    return comparison


def are_documents_the_same(recipe: Recipe, *, asked: bool) -> bool:
    """Whether all seeds of a recipe have the same documents.

    Args:
        recipe: as it was read.
        asked: whether the first seed's are wanted for all.

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


def _document_words(same: bool, trains: bool) -> str:
    if same:
        varied = "training and search" if trains else "the search and what it holds out"
        return f"the same for every seed; what differs between seeds is {varied}"
    return (
        "split anew for each seed, so what differs between seeds holds what differs between "
        "documents; --same-documents keeps the first seed's"
    )


def of_seed(run: Run, number: int, *, same_documents: bool = False) -> Run:
    """The run of a later seed, in a folder of its own; of number 0 the run itself."""
    if number == 0:
        return run
    seed = run.recipe.seed + number
    recipe = replace_values(run.recipe, seed=seed, search=search_alone(run.recipe.search))
    return replace(
        run.below("seeds", str(seed)), recipe=recipe, lender=run, same_documents=same_documents
    )


def search_alone(section: SearchSection) -> SearchSection:
    """The same search by this process alone, its study in the stage's own folder: workers beside it
    would open the recipe by its name, as it stands there, and its study is another."""
    return replace_values(section, workers=1, storage=None, study_name=None)


def compare_seeds(results: Mapping[int, MergeResults], *, same_documents: bool) -> SeedComparison:
    """Figures of every seed, and their scatter beside that over documents.

    Args:
        results: what the merge stage of each seed found.
        same_documents: whether all seeds have the same.
    """
    figures_by_seed = {str(seed): _figures(one) for seed, one in results.items()}
    seeds = {
        str(seed): SeedOutcome(
            chosen=one.chosen,
            figures={name: figure for name, (figure, _) in figures_by_seed[str(seed)].items()},
        )
        for seed, one in results.items()
    }
    # A figure may be missing in one seed, such as the gain kept where none was shown; a mean over
    # the rest would be of other seeds than its neighbors.
    names = [
        name
        for name in next(iter(seeds.values())).figures
        if all(name in outcome.figures for outcome in seeds.values())
    ]
    return SeedComparison(
        same_documents=same_documents,
        seeds=seeds,
        figures={
            name: _scatter([figures[name] for figures in figures_by_seed.values()], same_documents)
            for name in names
        },
    )


def _figures(results: MergeResults) -> dict[str, tuple[Interval, int]]:
    """Figures by name, each with the number of groups that its interval is over."""
    merge, specialist = results.models.merge, results.models.specialist
    groups = {one.name: one.groups_test for one in results.sets}
    # Of several sets the smallest speaks for all.
    num_domain = min((one.groups_test for one in results.sets if one.role == "domain"), default=0)
    figures = {"domain, change": (merge.domain_change, num_domain)}
    for title, model in (("", merge), (", specialist", specialist)):
        for name, change in model.set_changes.items():
            figures[f"{name}, change{title}"] = change, groups.get(name, 0)
    if results.gain_kept is not None:
        figures["gain kept"] = results.gain_kept, num_domain
    for name, share in results.sets_recovered.items():
        if share is not None:
            figures[f"{name}, recovered"] = share, groups.get(name, 0)
    return figures


def _standard_error(figure: Interval, num_groups: int) -> float:
    """That a 95 % interval is made of: over few groups it is wider by Student's t."""
    return (figure.high - figure.low) / (2.0 * student_quantile(0.975, max(1, num_groups - 1)))


def _scatter(found: Sequence[tuple[Interval, int]], same_documents: bool) -> SeedScatter:
    estimates = [figure.estimate for figure, _ in found]
    error = statistics.fmean(_standard_error(*one) for one in found)
    # Variances add up: of documents split anew, that between seeds holds that over documents. Few
    # seeds may by chance scatter less than documents do, and nothing is left of the difference.
    between = statistics.stdev(estimates)
    return SeedScatter(
        mean=statistics.fmean(estimates),
        between_seeds=between,
        over_documents=error,
        of_the_seed=between if same_documents else math.sqrt(max(between**2 - error**2, 0.0)),
    )


def show_seeds(comparison: SeedComparison, *, trains: bool = True) -> None:
    """Print what `compare_seeds` found, of a recipe that trains its specialist or names it."""
    seeds, same = comparison.seeds, comparison.same_documents
    for number, (seed, outcome) in enumerate(seeds.items(), start=1):
        say(f"{number}: seed {seed}, chosen: {outcome.chosen}")
    rows = [["", *map(str, range(1, len(seeds) + 1)), "mean", "seeds", "items"]]
    rows[0] += [] if same else ["seed's own"]
    for name, scatter in comparison.figures.items():
        changes = [*(one.figures[name].estimate for one in seeds.values()), scatter.mean]
        row = [name, *(decimals(change, sign="+") for change in changes)]
        row += [f"{scatter.between_seeds:.4f}"]
        row += [f"{scatter.over_documents:.4f}"]
        rows.append(row if same else [*row, f"{scatter.of_the_seed:.4f}"])
    say("a column per seed; standard deviation between seeds, standard error over items")
    say_columns(rows)
    # Of three seeds the deviation is known to a factor of about two below and six above: without
    # this line it would be read as a measurement.
    reach = deviation_interval(len(seeds))
    num_choices = len({outcome.chosen for outcome in seeds.values()})
    say(f"documents: {_document_words(same, trains)}")
    say(
        f"{len(seeds)} seeds chose {num_choices} different "
        f"{'merge' if num_choices == 1 else 'merges'}; the true standard deviation between seeds "
        f"lies within {reach.low:.2g} to {reach.high:.2g} times the one shown (95 %)"
    )
