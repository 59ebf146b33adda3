"""A recipe: one YAML file, one whole run."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.config import Section, load_yaml, parse_section
from toolkit.data.config import DataSection
from toolkit.errors import ConfigError, did_you_mean
from toolkit.evaluate.config import EvaluateSection
from toolkit.model_config import ModelSection
from toolkit.publish.config import PublishSection
from toolkit.search.config import SearchSection
from toolkit.select import SelectSection
from toolkit.study.config import StudySection
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
    def _published_sources(self) -> Self:
        for name in self.publish.sources:
            if name not in self.data.sources:
                raise ValueError(
                    f"publish.sources: there is no source {name!r}; "
                    f"sources: {', '.join(self.data.sources)}"
                )
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
    hint = did_you_mean(domain, names)
    raise ConfigError(f"no recipe {domain!r} in {folder}/{hint} Recipes: {', '.join(names)}.")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: one line for each fault, each at its key.
    """
    return parse_section(Recipe, load_yaml(path), where=str(path), what="recipe")


def merge_folder() -> Path:
    """Where `merges/` stands: beside the package in a checkout."""
    return Path(str(resources.files("toolkit"))).parent / "merges"
