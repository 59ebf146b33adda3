"""Reading a recipe: the file found by name, its layers laid over it, all faults at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.errors import ConfigError, Fault, sentence_end
from toolkit.load_yaml import load_yaml
from toolkit.recipe.checks import recipe_faults
from toolkit.recipe.layers import Layers, broken_rules, parse_amounts, read_layers, with_amounts
from toolkit.recipe.schema import Recipe
from toolkit.section import check_section
from toolkit.shipped import find_in, folders_of, names_in
from toolkit.study.config import unknown_models


def find_recipe(domain: str) -> Path:
    """The file of a recipe given by name or by path; `recipes/` where the command runs comes before
    the package's own.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    given = Path(domain)
    if given.suffix in {".yaml", ".yml"}:
        if given.is_file():
            return given
        raise ConfigError(f"{given}: no such recipe file.")
    folders = folders_of("recipes")
    if (path := find_in(folders, domain)) is not None:
        return path
    names = names_in(folders)
    hint = sentence_end(domain, names)
    raise ConfigError(
        f"no recipe {domain!r} in recipes/ or in the package{hint} Recipes: {', '.join(names)}."
    )


def load_recipe(path: Path, layers: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, all its variants and scales included.

    Args:
        path: of the file.
        layers: names of a variant and a scale to lay over it; see `recipe.layers`.

    Raises:
        ConfigError: one line for each fault, each at its key; or there is no such layer.
    """
    table, faults = read_layers(load_yaml(path))
    recipes: dict[tuple[str | None, str | None], Recipe] = {}
    for variant, scale in table.combinations():
        recipe, new_faults = _parse_layers(table, variant, scale, recipes.get((variant, None)))
        if recipe is not None:
            recipes[variant, scale] = recipe
        if variant is None and scale is None:
            # The recipe's own come before those of its layers, which were found first.
            faults[:0] = new_faults
        # What is wrong with the recipe is wrong under every layer: it is told once, at the
        # outermost place where it stands.
        prefix = f"scales.{scale}." if scale else f"variants.{variant}." if variant else ""
        told_faults = {fault.without(f"variants.{variant}.").without(prefix) for fault in faults}
        for fault in new_faults:
            if fault not in told_faults:
                below = fault.below(prefix)
                faults.append(_under_variant(below, variant) if scale and variant else below)
    if (base := recipes.get((None, None))) is not None:
        faults += unknown_models(base.study, table.variants)
    if faults:
        raise ConfigError.listing(f"{path} is not a valid recipe:", faults)
    return recipes[table.choose(layers, str(path))]


def _under_variant(fault: Fault, variant: str) -> Fault:
    note = f" (with variant {variant})"
    if fault.advice:
        return replace(fault, advice=fault.advice + note)
    return replace(fault, what=fault.what + note)


def _parse_layers(
    table: Layers, variant: str | None, scale: str | None, full: Recipe | None
) -> tuple[Recipe | None, list[Fault]]:
    """The recipe under a variant and a scale, where its sections are valid, and its faults.

    Args:
        table: the recipe file.
        variant, scale: which of its layers.
        full: the recipe without the scale, where its sections are valid.
    """
    if variant is not None and scale is not None and full is None:
        return None, []  # the variant's own faults are told
    values = table.overlaid(variant, scale)
    recipe, faults = check_section(Recipe, values)
    if scale is None:
        return recipe, faults if recipe is None else recipe_faults(recipe)
    amounts, more = parse_amounts(table.amounts(variant, scale))
    faults += more
    if recipe is not None and full is not None:
        faults += broken_rules(full, recipe)
    if recipe is None or full is None or faults:
        return None, faults
    # Checked once more: amounts are computed from a recipe that is valid without them.
    recipe, faults = check_section(Recipe, with_amounts(values, amounts, recipe, full))
    return recipe, faults if recipe is None else recipe_faults(recipe)
