"""A recipe: one YAML file, one whole run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.data.config import DataSection
from toolkit.evaluate.config import EvaluateSection
from toolkit.publish.config import PublishSection
from toolkit.recipe.model import ModelSection
from toolkit.search.config import SearchSection
from toolkit.section import Section
from toolkit.select.config import SelectSection
from toolkit.study.config import StudySection, unknown_sets
from toolkit.train.config import SftSection, TokenizerSection, TrainSection


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
    def _known_start(self) -> Self:
        start = self.train.start
        if start is not None and start not in self.models:
            names = ", ".join(self.models) or "none"
            raise ValueError(f"train.start: there is no model {start!r} under models ({names})")
        if start is not None and self.tokenizer is not None:
            raise ValueError(
                "train.start: the general model would have tokens that its base lacks; leave "
                "tokenizer or start out"
            )
        if self.sft is not None and self.sft.train.start is not None:
            raise ValueError("sft.train.start: fine-tuning starts from sft.start; leave it out")
        return self

    @model_validator(mode="after")
    def _known_sources(self) -> Self:
        for name in self.publish.sources:
            if name not in self.data.sources:
                raise ValueError(
                    f"publish.sources: there is no source {name!r}; "
                    f"sources: {', '.join(self.data.sources)}"
                )
        sources = [*self.data.sources, *(self.sft.data.sources if self.sft is not None else ())]
        known, has_infilling = list(dict.fromkeys(sources)), self.evaluate.infilling is not None
        if faults := unknown_sets(self.study, known, has_infilling=has_infilling):
            raise ValueError("; ".join(map(str, faults)))
        return self
