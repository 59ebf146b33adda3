"""What a recipe says about published claims and how they are measured. No torch here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from toolkit.errors import Fault, sentence_end
from toolkit.section import Fraction, Section

Step = Literal["general", "cpt", "merge", "heal", "sft"]
STEPS: tuple[Step, ...] = get_args(Step)

OURS = "our choice"
"""Source of a comparison that nobody published."""

Source = Annotated[
    str, StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|openreview:[A-Za-z0-9_-]+|our choice)$")
]
Mark = Literal["V", "S", "M"]
"""V: read at its source. S: from a secondary summary. M: from memory, to be checked."""

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[a-z]+)?")


SETS = ("domain", "general", "retention", "infilling")
"""What a measure may be on, beside a source."""


class MeasureSection(Section):
    """Which models are compared, on what, and what is to be expected.

    A model is `general` (before training), `cpt` (the specialist), `merge`, `heal` or `sft`, of the
    recipe itself or of a variant: `VARIANT/merge`, and `VARIANT` alone is its specialist. Two of
    them in a list are a change: from the first to the second.
    """

    former_keys: ClassVar = {"share_of": "fraction_of"}

    of: str | tuple[str, str]
    """The model, or the change, that the claim is about."""

    against: str | tuple[str, str]
    """What it is held against."""

    test_set: str = "domain"
    """Test documents: of role `domain` or `general`, or a source by name. `retention`: the general
    model's own answers. `infilling`: what stands between two parts of a code file."""

    expect: Literal["lower", "higher", "equal"] = "lower"
    """What is claimed of `of`, as against `against`; `equal` means by `within` at most."""

    unit: Literal["difference", "relative", "fraction"] = "difference"
    """`difference`: of the losses, in their unit. `relative`: the same over the loss of `against`.
    `fraction`: how much of the way from `against` to `fraction_of` the model `of` has gone."""

    than: float | None = None
    """What it is expected to be lower or higher than, in that unit: 0, or of a fraction 0.5, where
    nothing is said."""

    within: Annotated[float, Field(gt=0.0)] | None = None
    """For `equal`: the largest difference, in that unit, which still counts as none. Ours."""

    fraction_of: str | None = None
    """For `fraction`: the model that has gone all of the way."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.expect == "equal") != (self.within is not None):
            raise ValueError("within belongs to expect: equal, and that needs it")
        if self.expect == "equal" and self.than is not None:
            raise ValueError("than is for lower and higher; equal says within")
        if (self.unit == "fraction") != (self.fraction_of is not None):
            raise ValueError("fraction_of belongs to unit: fraction, and that needs it")
        if self.unit != "difference" and not (
            isinstance(self.of, str) and isinstance(self.against, str)
        ):
            raise ValueError(f"unit {self.unit} compares models, not changes; use difference")
        for name in self.models():
            if not _MODEL.fullmatch(name) or ("/" in name and name.split("/")[1] not in STEPS):
                raise ValueError(
                    f"{name!r} names no model; write {', '.join(STEPS)}, a variant, or VARIANT/STEP"
                )
        return self

    def models(self) -> Iterator[str]:
        """All models that are named, in order; some may stand twice."""
        for compared_side in (self.against, self.of, self.fraction_of):
            if compared_side is not None:
                yield from (compared_side,) if isinstance(compared_side, str) else compared_side

    def threshold(self) -> float:
        """What the figure is expected to be lower or higher than.

        >>> MeasureSection(of="merge", against="cpt").threshold()
        0.0
        """
        return self.than if self.than is not None else 0.5 if self.unit == "fraction" else 0.0


class ClaimSection(Section):
    """One published claim."""

    claim: Annotated[str, StringConstraints(min_length=10, max_length=300)]
    """In one sentence, as published."""

    source: Source
    """arXiv number, or `openreview:` and the number there; `our choice` where nothing is published
    and the comparison is our own."""

    mark: Mark | None = None
    """How we know of it: V read at its source, S from a secondary summary, M from memory. Only our
    own comparisons have none."""

    measure: MeasureSection
    """What of it is measured here."""

    @model_validator(mode="after")
    def _marked(self) -> Self:
        if (self.mark is None) != (self.source == OURS):
            raise ValueError(f"mark: must be given of what was published, and not of {OURS!r}")
        return self

    @property
    def address(self) -> str:
        """Where to read it; empty for our own."""
        kind, _, number = self.source.partition(":")
        if kind == "openreview":
            return f"https://openreview.net/forum?id={number}"
        return "" if kind == OURS else f"https://arxiv.org/abs/{self.source}"


class StudySection(Section):
    """Published claims, and what of them a run can show: `toolkit study run`."""

    claims: Annotated[tuple[ClaimSection, ...], Field(min_length=1)]
    """They are judged together: the more there are, the surer each must be."""

    confidence: Annotated[Fraction, Field(gt=0.5, lt=1.0)] = 0.95
    """Of all intervals together (Bonferroni): of m claims each holds with
    1 - (1 - confidence) / m by itself."""


def split_model(name: str) -> tuple[str | None, Step]:
    """Variant and step that a name stands for.

    >>> split_model("merge"), split_model("weak"), split_model("weak/sft")
    ((None, 'merge'), ('weak', 'cpt'), ('weak', 'sft'))
    """
    variant, _, step_name = name.rpartition("/")
    # Steps go before variants: what is none of them is a variant, of which the specialist is
    # meant.
    for known in STEPS:
        if step_name == known:
            return variant or None, known
    return step_name, "cpt"


def unknown_models(study: StudySection | None, variants: Collection[str]) -> list[Fault]:
    """A fault for each model of a study whose variant the recipe does not have, at its key."""
    faults = []
    for number, claim in enumerate(study.claims if study is not None else ()):
        # Once each: a model that stands on both sides would be told twice at one key.
        for name in dict.fromkeys(claim.measure.models()):
            variant, _ = split_model(name)
            if variant is not None and variant not in variants:
                hint = sentence_end(variant, sorted(variants))
                faults.append(
                    Fault(
                        f"study.claims.{number}.measure",
                        f"there is no variant {variant!r}{hint} "
                        f"Variants: {', '.join(sorted(variants)) or 'none'}.",
                    )
                )
    return faults


def unknown_sets(
    study: StudySection | None, sources: Mapping[str, str], *, has_infilling: bool = True
) -> list[Fault]:
    """A fault for each measure on something that the recipe does not test, at its key.

    Args:
        study: the recipe's.
        sources: their roles by name.
        has_infilling: whether the recipe has `evaluate.infilling`.
    """
    faults = []
    for number, claim in enumerate(study.claims if study is not None else ()):
        key, name = f"study.claims.{number}.measure.test_set", claim.measure.test_set
        if name not in SETS and name not in sources:
            known_sets = [*SETS, *sources]
            hint = sentence_end(name, known_sets)
            what = f"there is no test set {name!r}{hint} Sets: {', '.join(known_sets)}."
            faults.append(Fault(key, what))
        # Where the source is all that the role has, the two names mean the same.
        of_role = [source for source, role in sources.items() if role == name]
        if name in SETS and name in sources and of_role != [name]:
            what = f"{name} is what a source is called as well, so it names two things"
            faults.append(Fault(key, what, f"call the source data.sources.{name} otherwise"))
        if name == "infilling" and not has_infilling:
            what = "infilling needs a section evaluate.infilling, and there is none"
            faults.append(Fault(key, what))
    return faults
