"""The ways of a file as recipes and runs: read, checked, and told what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.compare.config import MergeKind, WaysSection
from toolkit.errors import ConfigError, Fault, sentence_end
from toolkit.evaluate.config import EvaluateSection
from toolkit.load_yaml import load_yaml
from toolkit.pipeline.repeat import of_seed, search_alone
from toolkit.pipeline.run import Run
from toolkit.recipe.checks import library_faults, recipe_faults
from toolkit.recipe.layers import overlay
from toolkit.recipe.schema import Recipe
from toolkit.section import check_section, parse_section, replace_values
from toolkit.shipped import find_in, folders_of, names_in
from toolkit.stage import MANIFEST

WAYS = "ways"
MAY_DIFFER = ("data", "train", "models", "search", "select", "heal")
"""Keys of a recipe that a way may change."""

_ONLY_WHERE_TRAINED = ("data", "train", "models")


@dataclass(frozen=True)
class PlannedWay:
    """A way as a recipe.

    Attributes:
        name: its name in the file.
        recipe: the recipe with what the way changes.
        merges: which merges of its specialist are compared.
        settings: what it changes, as it was written.
        note: where it is from.
        trains_as: an earlier way that trains the same specialist; None where there is none.
    """

    name: str
    recipe: Recipe
    merges: tuple[MergeKind, ...]
    settings: Mapping[str, object]
    note: str = ""
    trains_as: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A file of ways, read for a recipe.

    Attributes:
        name: name of the file, and of the folder of the results.
        command: command that makes it.
        section: what it says.
        ways: the ways, the reference first.
        evaluate: what all of them are scored on.
    """

    name: str
    command: str
    section: WaysSection
    ways: tuple[PlannedWay, ...]
    evaluate: EvaluateSection

    @property
    def reference(self) -> PlannedWay:
        return self.ways[0]


def open_comparison(run: Run, name: str = "") -> Comparison:
    """The ways of a recipe: a file by name or by path, by default that of the recipe's name.

    Raises:
        ConfigError: there is no such file, or it is not valid.
    """
    path = find_ways(name or (run.path.stem if run.path is not None else run.name))
    comparison = load_comparison(path, run.recipe)
    words = f"toolkit compare {run.name}" + (f" --ways {name}" if name else "")
    return replace(comparison, command=words)


def find_ways(name: str) -> Path:
    """The file of ways given by name or by path; `recipes/ways/` where the command runs comes
    before the package's own.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    given = Path(name)
    if given.suffix in {".yaml", ".yml"}:
        if given.is_file():
            return given
        raise ConfigError(f"{given}: no such file of ways.")
    folders = [folder / WAYS for folder in folders_of("recipes") if (folder / WAYS).is_dir()]
    if (path := find_in(folders, name)) is not None:
        return path
    names = names_in(folders)
    raise ConfigError(
        f"there is no file of ways {name!r} in recipes/{WAYS}/ or in the package"
        f"{sentence_end(name, names)} Files: {', '.join(names) or 'none'}; name one by --ways, or "
        f"write recipes/{WAYS}/{name}.yaml (see docs/compare.md)."
    )


def load_comparison(path: Path, recipe: Recipe) -> Comparison:
    """Read a file of ways and lay each over a recipe.

    Args:
        path: of the file.
        recipe: the recipe that they are ways of.

    Raises:
        ConfigError: one line for each fault, each at its key.
    """
    section = parse_section(WaysSection, load_yaml(path), where=str(path), what="file of ways")
    heading = f"{path} is not a valid file of ways:"
    if recipe.specialists:
        raise ConfigError(
            f"{path}: the recipe names several specialists "
            f"({', '.join(recipe.specialists)}), and ways of one are compared; take a recipe with "
            "one."
        )
    faults: list[Fault] = []
    # The reference first: what it shares with others is made in its folder.
    names = sorted(section.ways, key=lambda name: name != section.reference)
    ways: list[PlannedWay] = []
    for name in names:
        settings = section.ways[name].recipe
        way_recipe, way_faults = _lay_over(recipe, settings)
        faults += [fault.below(f"ways.{name}.recipe.") for fault in way_faults]
        if way_recipe is not None and not section.merges_of(name):
            faults.append(Fault(f"ways.{name}.merges", "are none, so there is nothing to compare"))
        if way_recipe is not None and way_recipe.heal is None and "heal" in section.merges_of(name):
            what = "heal needs a section heal in the way's recipe"
            faults.append(Fault(f"ways.{name}.merges", what, "such as `heal: {source: merge}`"))
        if way_recipe is not None:
            note, merges = section.ways[name].note, section.merges_of(name)
            # The first that is alike and not the nearest: all of a kind then name one.
            earlier = next((w.name for w in ways if _train_alike(w.recipe, way_recipe)), None)
            ways.append(PlannedWay(name, way_recipe, merges, settings, note, earlier))
    # Of a reference that was refused nothing more is said: its own faults are in the list.
    if ways and ways[0].name == section.reference and ways[0].recipe.train.start is not None:
        what = "starts training beside the general model, so its specialist is no end of a line"
        faults.append(Fault("reference", what, "take a way without train.start"))
    evaluate, evaluate_faults = check_section(
        EvaluateSection,
        # As it was written: defaults that are filled in would look like settings of the recipe.
        overlay(recipe.evaluate.model_dump(mode="json", exclude_unset=True), section.evaluate),
    )
    faults += [fault.below("evaluate.") for fault in evaluate_faults]
    if evaluate is not None:
        faults += library_faults(replace_values(recipe, evaluate=evaluate))
    if faults or evaluate is None:
        raise ConfigError.listing(heading, faults)
    return Comparison(path.stem, "", section, tuple(ways), evaluate)


def _lay_over(recipe: Recipe, settings: Mapping[str, object]) -> tuple[Recipe | None, list[Fault]]:
    """The recipe of a way, or None and what is wrong, each at the recipe's key."""
    refused = []
    for key in settings:
        if key in Recipe.model_fields and key not in MAY_DIFFER:
            what = (
                "is the same for all ways, which are compared on one model and the same test sets"
            )
            advice = (
                "further measures stand under evaluate of the file" if key == "evaluate" else ""
            )
            refused.append(Fault(key, what, advice or f"a way changes {', '.join(MAY_DIFFER)}"))
        elif key in _ONLY_WHERE_TRAINED and not recipe.trains:
            what = "the recipe names a finished specialist, so nothing is trained"
            refused.append(Fault(key, what, "ways of it differ in search, select and heal alone"))
    if refused:
        return None, refused
    values = recipe.model_dump(mode="json", exclude_unset=True)
    way_recipe, faults = check_section(Recipe, overlay(values, dict(settings)))
    if way_recipe is None:
        return None, faults
    # Faults of the recipe itself would otherwise be told once per way, at keys no way has.
    faults = [f for f in recipe_faults(way_recipe) if f not in recipe_faults(recipe)]
    faults += library_faults(way_recipe)
    return (None, faults) if faults else (way_recipe, [])


def _train_alike(one: Recipe, other: Recipe) -> bool:
    return (one.data, one.train, one.models) == (other.data, other.train, other.models)


def runs_of_ways(
    run: Run, comparison: Comparison, number: int, reuse: Sequence[Path] = ()
) -> dict[str, Run]:
    """The run of each way for one seed, by name.

    A way that changes nothing is the recipe's own run; the others stand in `ways/` below it. What
    two have in common is made once: each finds the complete stages of all others.

    Args:
        run: run of the recipe.
        comparison: the ways.
        number: number of the seed, 0 the recipe's own.
        reuse: roots of further runs of the recipe whose complete stages serve.
    """
    roots = {
        way.name: run.root if way.recipe == run.recipe else run.root / WAYS / way.name
        for way in comparison.ways
    }
    # Folders of ways that are called otherwise now serve as well: stages fit by what they are made
    # from, whatever they are called.
    reused = [place for root in reuse for place in (root, *sorted((root / WAYS).glob("*")))]
    runs = {}
    for way in comparison.ways:
        own_root = roots[way.name]
        others = dict.fromkeys(root for root in (*roots.values(), *reused) if root != own_root)
        way_run = replace(
            run,
            # Reports and studies are called by it, so that two ways are told apart there.
            name=run.name if own_root == run.root else f"{run.name}/{WAYS}/{way.name}",
            recipe=run.recipe
            if own_root == run.root
            else replace_values(way.recipe, search=search_alone(way.recipe.search)),
            root=own_root,
            also=tuple(others),
        )
        # Seeds after the first stand below each way; they borrow the way's own documents.
        runs[way.name] = of_seed(way_run, number, same_documents=True)
    return runs


def find_reused_root(run: Run, folder: Path) -> Path:
    """The root of the recipe's run in a folder that is named: a folder of runs, or the run's own.

    Raises:
        ConfigError: no stage of the recipe stands there.
    """
    for root in (folder / run.root.name, folder):
        if any(root.glob(f"*/{MANIFEST}")):
            return root
    raise ConfigError(
        f"--reuse {folder}: holds no complete stage of {run.name} (looked in "
        f"{folder / run.root.name} and {folder}); give the folder of its runs."
    )
