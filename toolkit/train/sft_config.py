"""What a recipe says about fine-tuning after the merge. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from toolkit.config import Section
from toolkit.data.config import DataSection
from toolkit.train.config import TrainSection


class SftSection(Section):
    """Fine-tuning on conversations: the same data stage and the same loop, with other settings.

    Generic text replayed while fine-tuning helps the target as well (Kotha & Liang 2026), so `data`
    needs a general source here too.
    """

    start: Literal["merge", "specialist", "general"] = "merge"
    """The model to start from; the stages that make it run first where needed."""

    data: DataSection
    """As `data` of the recipe. Sources with `messages_field` are conversations: they go through the
    chat template, and only the assistant's words are learned and scored."""

    train: TrainSection
    """As `train` of the recipe, and nothing is taken over from it: a rate ten times lower, and a
    few epochs, are usual."""

    @model_validator(mode="after")
    def _own_end(self) -> Self:
        if self.train.use in {"anneal", "average"}:
            raise ValueError(f"train.use: {self.train.use} is for cpt; give last or best")
        return self
