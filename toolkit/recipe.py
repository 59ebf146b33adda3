"""A recipe: one YAML file, one whole run."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.config import Section, check_section, load_yaml
from toolkit.data.config import DataSection
from toolkit.errors import ConfigError, sentence_end
from toolkit.evaluate.config import EvaluateSection
from toolkit.model_config import ModelSection
from toolkit.publish.config import PublishSection
from toolkit.recipe_checks import recipe_faults
from toolkit.recipe_layers import (
    Layers,
    broken_rules,
    parse_amounts,
    read_layers,
    with_amounts,
)
from toolkit.search.config import SearchSection
from toolkit.select import SelectSection
from toolkit.study.config import StudySection, unknown_models, unknown_sets
from toolkit.train.config import TrainSection
from toolkit.train.extension_config import TokenizerSection
from toolkit.train.sft_config import SftSection


class Recipe(Section):
    """Everything that changes a number in a run."""

    description: str = ""
    """One line for people."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Splits, orders and resampling derive from it by name."""

    model: ModelSection
    models: dict[str, ModelSection] = Field(default_factory=dict)
    """Further models that merges may name beside `general` and `specialist`, such as the
    pre-trained model under an instruct one."""

    tokenizer: TokenizerSection | None = None
    """New tokens for the domain, before anything else."""

    data: DataSection
    train: TrainSection = TrainSection()
    sft: SftSection | None = None
    """Fine-tuning after the merge: `toolkit sft run`."""

    evaluate: EvaluateSection = EvaluateSection()
    search: SearchSection = SearchSection()
    select: SelectSection = SelectSection()
    publish: PublishSection = PublishSection()
    study: StudySection | None = None
    """Published claims, and what of them this recipe measures: `toolkit study run`."""

    @model_validator(mode="after")
    def _known_sources(self) -> Self:
        for name in self.publish.sources:
            if name not in self.data.sources:
                raise ValueError(
                    f"publish.sources: there is no source {name!r}; "
                    f"sources: {', '.join(self.data.sources)}"
                )
        sources = [*self.data.sources, *(self.sft.data.sources if self.sft is not None else ())]
        known, has_middles = list(dict.fromkeys(sources)), self.evaluate.middles is not None
        if faults := unknown_sets(self.study, known, has_middles=has_middles):
            raise ValueError("; ".join(faults))
        return self


def find_recipe(domain: str, folder: Path = Path("recipes")) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    given = Path(domain)
    if given.suffix in {".yaml", ".yml"}:
        if given.is_file():
            return given
        raise ConfigError(f"{given}: no such recipe file.")
    path = folder / f"{domain}.yaml"
    if path.is_file():
        return path
    names = sorted(item.stem for item in folder.glob("*.yaml"))
    if not names:
        raise ConfigError(
            f"{folder}/: holds no recipes; run in the folder that does, or give a path to a .yaml."
        )
    hint = sentence_end(domain, names)
    raise ConfigError(f"no recipe {domain!r} in {folder}/{hint} Recipes: {', '.join(names)}.")


def load_recipe(path: Path, layers: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, all its variants and scales included.

    Args:
        path: of the file.
        layers: names of a variant and a scale to lay over it; see `recipe_layers`.

    Raises:
        ConfigError: one line for each fault, each at its key; or there is no such layer.
    """
    table, faults = read_layers(load_yaml(path))
    recipes: dict[tuple[str | None, str | None], Recipe] = {}
    for variant, scale in table.combinations():
        recipe, found = _parse_layers(table, variant, scale, recipes.get((variant, None)))
        if recipe is not None:
            recipes[variant, scale] = recipe
        if variant is None and scale is None:
            faults[:0] = found
        key = f"scales.{scale}." if scale else f"variants.{variant}." if variant else ""
        note = f" (with variant {variant})" if scale and variant else ""
        told = {line.removeprefix(f"variants.{variant}.").removeprefix(key) for line in faults}
        faults += [f"{key}{line}{note}" for line in found if line not in told]
    if (base := recipes.get((None, None))) is not None:
        faults += unknown_models(base.study, table.variants)
    if faults:
        raise ConfigError("\n  ".join([f"{path} is not a valid recipe:", *faults]))
    return recipes[table.choose(layers, str(path))]


def _parse_layers(
    table: Layers, variant: str | None, scale: str | None, full: Recipe | None
) -> tuple[Recipe | None, list[str]]:
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
    recipe, faults = check_section(Recipe, with_amounts(values, amounts, recipe, full))
    return recipe, faults if recipe is None else recipe_faults(recipe)


def merge_folder() -> Path:
    """Where `merges/` stands: beside the package in a checkout."""
    return Path(str(resources.files("toolkit"))).parent / "merges"
