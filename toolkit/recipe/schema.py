"""A recipe: one YAML file, one whole run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.data.config import DataSection
from toolkit.evaluate.config import EvaluateSection
from toolkit.knowledge.config import QuestionsSection, WritingSection
from toolkit.publish.config import PublishSection
from toolkit.recipe.model import ModelSection, SpecialistSection
from toolkit.search.config import MERGES_BESIDE_A_BASE, MERGES_OF_SEVERAL, SearchSection
from toolkit.section import Section
from toolkit.select.config import SelectSection
from toolkit.study.config import StudySection, unknown_sets
from toolkit.train.config import HealSection, SftSection, TokenizerSection, TrainSection


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

    specialist: SpecialistSection | None = None
    """A finished specialist to choose a merge of. Nothing is trained then: `train` is left out, and
    `data` makes evaluation sets only."""

    specialists: dict[str, SpecialistSection] = Field(default_factory=dict)
    """Several finished specialists by name, in place of one: merges are over all of them. Each has
    domain sets of its own: a source, choices or a task says whose it is by `specialist`, or by its
    name."""

    tokenizer: TokenizerSection | None = None
    """New tokens for the domain, before anything else."""

    data: DataSection
    writing: WritingSection = WritingSection()
    train: TrainSection = TrainSection()
    sft: SftSection | None = None
    """Fine-tuning after the merge: `toolkit sft run`."""

    heal: HealSection | None = None
    """Repair of the merge or the specialist by distillation: `toolkit heal`."""

    evaluate: EvaluateSection = EvaluateSection()
    questions: QuestionsSection = QuestionsSection()
    search: SearchSection = SearchSection()
    select: SelectSection = SelectSection()
    publish: PublishSection = PublishSection()
    study: StudySection | None = None
    """Published claims, and what of them this recipe measures: `toolkit study run`."""

    @property
    def trains(self) -> bool:
        """Whether the specialist is trained here, and not named."""
        return self.specialist is None and not self.specialists

    def find_owners(self) -> dict[str, str | None]:
        """Which of several specialists each domain set is of, by the name of its source, choices or
        task; None where none is."""
        named: dict[str, tuple[str, str | None]] = {
            name: (source.role, source.specialist) for name, source in self.data.sources.items()
        }
        evaluate = self.evaluate
        named |= {one.name: (one.role, one.specialist) for one in evaluate.multiple_choice}
        named |= {one.task: (one.role, one.specialist) for one in evaluate.tasks}
        return {
            name: owner or (name if name in self.specialists else None)
            for name, (role, owner) in named.items()
            if role == "domain"
        }

    @model_validator(mode="before")
    @classmethod
    def _fill_finished(cls, values: Any) -> Any:
        """Where nothing is trained, sources that say nothing else are halves of two sets; merges of
        several specialists are others than those of one."""
        if not isinstance(values, dict):
            return values
        if values.get("specialists"):
            search = values.get("search") or {}
            if isinstance(search, dict) and search.get("merges") is None:
                values = {**values, "search": {**search, "merges": list(MERGES_OF_SEVERAL)}}
        elif not values.get("specialist"):
            return values
        data = values.get("data")
        sources = data.get("sources") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(sources, dict):
            return values
        # Before the sections are checked: afterwards every source has a split, its default.
        halves = {"split": {"validation": {"fraction": 0.5}, "test": {"fraction": 0.5}}}
        split_sources = {
            name: {**source, **halves}
            if isinstance(source, dict) and source.get("split") is None
            else source
            for name, source in sources.items()
        }
        return {**values, "data": {**data, "sources": split_sources}}

    @model_validator(mode="before")
    @classmethod
    def _fill_residual(cls, values: Any) -> Any:
        """Where training starts beside the general model, merges add what it changed."""
        if not isinstance(values, dict):
            return values
        # On the plain values, as sections are frozen once they are checked.
        train, search = values.get("train"), values.get("search") or {}
        if not isinstance(train, dict) or train.get("start") is None:
            return values
        if not isinstance(search, dict) or search.get("merges") is not None:
            return values
        return {**values, "search": {**search, "merges": list(MERGES_BESIDE_A_BASE)}}

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
    def _one_specialist(self) -> Self:
        if self.specialists and self.heal is not None:
            raise ValueError("heal: is for one specialist; leave it out")
        if self.search.learned is not None and (self.specialists or self.train.start is not None):
            raise ValueError(
                "search.learned: is for one specialist that was trained from the general model; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _known_sources(self) -> Self:
        for name in self.publish.sources:
            if name not in self.data.sources:
                raise ValueError(
                    f"publish.sources: there is no source {name!r}; "
                    f"sources: {', '.join(self.data.sources)}"
                )
        sft_sources = self.sft.data.sources if self.sft is not None else {}
        roles = {name: one.role for name, one in (*self.data.sources.items(), *sft_sources.items())}
        has_infilling = self.evaluate.infilling is not None
        if faults := unknown_sets(self.study, roles, has_infilling=has_infilling):
            raise ValueError("; ".join(map(str, faults)))
        return self
