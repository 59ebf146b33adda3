"""What a merge stage is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.recipe.schema import Recipe
from toolkit.search.space import GENERAL, SPECIALIST, SPECIALISTS

SCORES = "scores.jsonl"
"""The journal of the study, in the folder that the merge stage works in."""


@dataclass(frozen=True)
class MergeInputs:
    """What a merge stage is made from.

    Attributes:
        name: name of the recipe with its layers, shown in the report.
        recipe: the whole recipe.
        general: folder of the general model.
        specialists: folders of the specialists by name; one is called `specialist`.
        data: folder of the data stage.
        others: folders of the recipe's further models, by name.
    """

    name: str
    recipe: Recipe
    general: Path
    specialists: Mapping[str, Path]
    data: Path
    others: Mapping[str, Path] = field(default_factory=dict)

    @property
    def folders(self) -> dict[str, Path]:
        """Where the models of a merge stand, by the names that it uses."""
        return {GENERAL: self.general, **self.specialists, **self.others}

    @property
    def specialist(self) -> Path | None:
        """Folder of the specialist; None where there are several."""
        return self.specialists.get(SPECIALIST)

    def hash_key(self, name: str) -> str:
        """What the hash of a specialist is called among the inputs of the stage."""
        # Names of several are the user's own: they must not meet `data` or `merges`, which are keys
        # of the same mapping.
        return name if name == SPECIALIST else f"{SPECIALISTS}/{name}"

    @property
    def study(self) -> str:
        """Name of the study in its storage."""
        return self.recipe.search.study_name or self.name

    def place(self, work: Path) -> Path | str:
        """Where the workers of the study meet, given the folder that the stage works in."""
        return self.recipe.search.storage or work / SCORES
